"""The wire dialect: what requests may say, and the JSON that answers them (OpenAI's, vLLM's)."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from inference.engine.errors import Refusal
from inference.engine.sampling import Sampling

# Options that change the text and that this engine does not have. Taking them in silence would
# be a lie, so only their neutral values pass.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
    "min_p": (0,),
    "top_k": (0, -1),
    "tools": ([],),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
}


class Body(BaseModel):
    """A JSON body; unknown keys pass, as in OpenAI's own server."""

    model_config = ConfigDict(extra="allow")


class TextPart(BaseModel):
    """One part of a message that is a list."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart]

    def plain(self) -> dict[str, str]:
        """Return the message as chat templates know it."""
        role = "system" if self.role == "developer" else self.role
        content = self.content
        if not isinstance(content, str):
            content = "".join(part.text for part in content)
        return {"role": role, "content": content}


class StreamOptions(BaseModel):
    """Whether a stream ends with the token counts."""

    include_usage: bool = False


class Generation(Body):
    """What chat and completion requests share."""

    model: str
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    stop: str | list[str] | None = None
    n: Annotated[int, Field(ge=1, le=64)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool = False

    @model_validator(mode="after")
    def _only_what_we_do(self) -> Generation:
        for name, value in (self.model_extra or {}).items():
            if name in NEUTRAL and value is not None and value not in NEUTRAL[name]:
                raise ValueError(f"{name} is not supported by this engine: leave it out")
        if len(self.stops) > 16 or not all(0 < len(stop) <= 256 for stop in self.stops):
            raise ValueError("stop takes up to 16 strings of 1 to 256 characters")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """Return the stop strings, however they were given."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def wanted_tokens(self) -> int | None:
        """Return the most tokens to write; None leaves it to the context."""
        return self.max_tokens

    @property
    def wanted_logprobs(self) -> int | None:
        """Return how many likeliest tokens to report a token; None for no report at all."""
        return None

    def sampling(self, room: int) -> Sampling:
        """Return the sampling settings, given the room that the prompt leaves."""
        return Sampling(
            max_tokens=room if self.wanted_tokens is None else self.wanted_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=self.seed,
            stop=self.stops,
            n=self.n or 1,
            ignore_eos=self.ignore_eos,
            top_logprobs=self.wanted_logprobs,
        )

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatRequest(Generation):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @property
    def wanted_tokens(self) -> int | None:
        """Return the most tokens to write; the newer name wins."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def wanted_logprobs(self) -> int | None:
        """Return how many likeliest tokens to report a token."""
        return (self.top_logprobs or 0) if self.logprobs else None


class LoadAdapter(Body):
    """POST /v1/load_lora_adapter."""

    lora_name: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[\w.:/-]+$")]
    lora_path: Annotated[str, Field(min_length=1)]


class UnloadAdapter(Body):
    """POST /v1/unload_lora_adapter."""

    lora_name: str


Parsed = TypeVar("Parsed", bound=Body)


def parse(shape: type[Parsed], body: bytes) -> Parsed:
    """Read a body; Refusal names the first thing wrong with it in one sentence."""
    try:
        return shape.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        what = first["msg"].removeprefix("Value error, ")
        raise Refusal(f"{where}: {what}." if where else f"{what}.") from error


def error_json(refusal: Refusal) -> dict[str, Any]:
    """Return OpenAI's error shape."""
    kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = "server_error" if refusal.status >= 500 else "invalid_request_error"
    return {
        "error": {
            "message": refusal.message,
            "type": kinds.get(refusal.status, kind),
            "param": None,
            "code": refusal.code,
        }
    }


def usage_json(prompt: int, written: int) -> dict[str, int]:
    """Return the token counts."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
    }


def model_json(name: str, *, root: str, parent: str | None, context: int) -> dict[str, Any]:
    """Return one entry of the model list."""
    return {
        "id": name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "laurel",
        "root": root,
        "parent": parent,
        "max_model_len": context,
    }
