from edgekit import errors
from edgekit.errors import EdgekitError, one_of


def test_every_remedy_has_the_exit_code_that_the_readme_promises() -> None:
    codes = {kind.__name__: kind.exit_code for kind in EdgekitError.__subclasses__()}
    promised = {
        "UsageError": 2,
        "Unsupported": 3,
        "TargetMissing": 4,
        "GateFailed": 5,
        "DeviceUnavailable": 6,
        "Damaged": 7,
        "TimedOut": 8,
        "DoesNotFit": 9,
    }
    assert {name: codes[name] for name in promised} == promised
    assert set(codes.values()) <= set(promised.values())
    assert errors.INTERRUPTED == 130


def test_an_error_keeps_its_hint_apart_from_its_message() -> None:
    error = EdgekitError("what", hint="how")
    assert (str(error), error.message, error.hint) == ("what", "what", "how")


def test_allowed_values_are_listed() -> None:
    assert one_of(["a", 2]) == "one of: a, 2"
