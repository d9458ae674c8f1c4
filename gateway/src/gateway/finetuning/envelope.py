"""The envelope of every answer on this surface: {"code": 0 | 7, "data", "msg"}, HTTP 200 but for a bad token."""

from collections.abc import Sequence
from typing import Any

import orjson
from starlette.responses import Response

from servicekit.errors import NotFound, PermissionDenied, Problem, TunesmithError, Unauthenticated, Unavailable

SUCCEEDED = 0
FAILED = 7

_TOKEN_MESSAGES = {"TOKEN_EXPIRED": "授权已过期，请重新登录", "TOKEN_INVALID": "令牌无效，请重新登录"}
_MESSAGES: dict[type[TunesmithError], str] = {
    NotFound: "任务不存在",
    PermissionDenied: "权限不足",
    Unavailable: "服务暂时不可用，请稍后重试",
}


def answer(code: int, data: Any, message: str, status: int = 200) -> Response:
    """An answer in the envelope."""
    body = orjson.dumps({"code": code, "data": data, "msg": message})
    return Response(body, status, media_type="application/json")


def succeeded(data: Any, message: str) -> Response:
    """A success; without data the caller gets {}."""
    return answer(SUCCEEDED, {} if data is None else data, message)


def failed(action: str, error: TunesmithError) -> Response:
    """An error of an action such as 创建任务."""
    if isinstance(error, Unauthenticated):
        response = answer(FAILED, {}, _TOKEN_MESSAGES.get(error.reason, "未登录或非法访问"), 401)
        response.headers["www-authenticate"] = "Bearer"
        return response
    return answer(FAILED, {}, f"{action}失败: {reason(error)}")


def reason(error: TunesmithError) -> str:
    """Why, with every problem."""
    if error.problems:
        return listed(error.problems)
    if error.reason == "QUOTA_EXHAUSTED":
        day = error.metadata.get("reset_time", "")[:10]
        return f"配额已用尽，{day} 重置；可联系管理员提高配额，或将 save_strategy 设为 no"
    message = next((text for kind, text in _MESSAGES.items() if isinstance(error, kind)), "")
    return message or error.message


def listed(problems: Sequence[Problem]) -> str:
    """All problems in one line."""
    text = "; ".join(str(problem) for problem in problems)
    return f"共 {len(problems)} 个问题: {text}" if len(problems) > 1 else text
