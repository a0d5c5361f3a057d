"""Errors in the form of OpenAI's API: all that a client ever sees of what went wrong."""

from starlette.responses import JSONResponse


class ApiError(Exception):
    """An answer other than 200.

    Args:
        status (`int`): HTTP status.
        message (`str`): One sentence: the item, the reason, the mend.
        code (`str`, *optional*): What a program can go by, in OpenAI's words where it has one.
        retry_after (`int`, *optional*): Seconds after which the client should try again.
    """

    def __init__(self, status: int, message: str, code: str | None = None, retry_after: int | None = None):
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.retry_after = retry_after

    def response(self) -> JSONResponse:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        if self.status == 429:
            kind = "rate_limit_error"
        content = {"error": {"message": self.message, "type": kind, "param": None, "code": self.code}}
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(content, self.status, headers)
