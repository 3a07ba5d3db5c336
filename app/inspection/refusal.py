"""What a look into a file says instead of an answer."""


class Refused(Exception):
    """What was asked cannot be done; `body` is the answer's `error`."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.body = {"code": code, "message": message, "param": param}
