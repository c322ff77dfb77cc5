"""What quantizers are made of: codebooks, estimators, objectives, noise, schedules."""
