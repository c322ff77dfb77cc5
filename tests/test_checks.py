import pytest

from gmvq import checks


@pytest.mark.parametrize("value", [10**400, -(10**400), float("inf"), float("nan"), True, "1", None])
def test_what_is_no_finite_number_is_refused(value):
    for check in (checks.positive, checks.non_negative):
        with pytest.raises(ValueError, match="'rate' must be a finite number"):
            check("rate", value)
    with pytest.raises(ValueError, match=r"'share' must lie in \[0, 1\]"):
        checks.fraction("share", value, "Use 0.5.")
