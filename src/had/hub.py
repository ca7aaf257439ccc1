"""What the Hugging Face Hub's library can raise where a repository, or the network, is not what was expected."""


def hub_errors() -> tuple[type[Exception], ...]:
    """Classes of errors of a call of huggingface_hub that are no fault of this program.

    The library raises what its HTTP client does, such as a proxy's refusal, and changed the client between releases:
    its own error for HTTP answers is derived from that client's base class. It is imported here, not before it is used.
    """
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    of_client = [kind for kind in HfHubHTTPError.__bases__ if issubclass(kind, Exception) and kind is not Exception]
    return (OSError, HFValidationError, HfHubHTTPError, *of_client)


def reason_of(error: Exception) -> str:
    """The first line of what such an error says; its name where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
