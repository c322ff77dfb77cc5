"""Parts of quantizers: codebooks, estimators, objectives, noise, schedules."""
