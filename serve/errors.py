"""Errors in the format of OpenAI's API, the only error information that a client receives."""

from starlette.responses import JSONResponse


class ApiError(Exception):
    """An answer with a status other than 200.

    Args:
        status (`int`): HTTP status.
        message (`str`): One sentence that says what failed, why, and how to fix it.
        code (`str`, *optional*): Machine-readable reason; one of OpenAI's codes where it defines a suitable one.
        retry_after (`int`, *optional*): Seconds after which the client should try again.
    """

    def __init__(self, status: int, message: str, code: str | None = None, retry_after: int | None = None):
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.retry_after = retry_after

    def response(self) -> JSONResponse:
        """Return the HTTP response, with its headers."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        if self.status == 429:
            kind = "rate_limit_error"
        content = {"error": {"message": self.message, "type": kind, "param": None, "code": self.code}}
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(content, self.status, headers)
