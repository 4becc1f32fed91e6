"""What a client may send, and the user that it gets."""

from datetime import datetime
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from api.users.emails import Email

MAX_ID = 2**63 - 1
"""PostgreSQL's largest bigint."""


def _without_nul(text: str) -> str:
    # PostgreSQL's text cannot hold it.
    if "\0" in text:
        raise ValueError("must not contain NUL characters")
    return text


def _without_default(schema: dict[str, Any]) -> None:
    # A key that is left out is left alone: it does not stand for null.
    del schema["default"]


def _without_null(schema: dict[str, Any]) -> None:
    _without_default(schema)
    schema.update(schema.pop("anyOf")[0])


Name = Annotated[
    str,
    Field(max_length=255),
    AfterValidator(_without_nul),
    WithJsonSchema({"type": "string", "maxLength": 255, "pattern": r"^[^\u0000]*$"}),
]
Address = Annotated[Email, WithJsonSchema({"type": "string", "format": "idn-email", "maxLength": 254})]
ID = Annotated[int, Field(ge=0, le=MAX_ID)]


class User(BaseModel):
    """A user. Every endpoint gives the same bytes for it; PostgreSQL makes them, this describes them."""

    model_config = ConfigDict(extra="forbid")

    id: Annotated[int, Field(ge=1, le=MAX_ID)]
    email: Annotated[Address, Field(description="Unique without regard to case.")]
    name: Name | None
    created_at: Annotated[datetime, Field(description="In UTC.")]
    updated_at: Annotated[datetime, Field(description="In UTC.")]


class UserPath(BaseModel):
    """The path of one user. The handlers read it by themselves: whatever is no id is not found."""

    id: Annotated[int, Field(ge=1, le=MAX_ID, examples=[5])]


class UserCreate(BaseModel):
    """The body of POST."""

    email: Address
    name: Name | None = None


class UserUpdate(BaseModel):
    """The body of PATCH. Which keys were sent is in `model_fields_set`: an absent key is left alone, null clears."""

    email: Address | None = Field(default=None, json_schema_extra=_without_null)
    name: Name | None = Field(default=None, json_schema_extra=_without_default, description="null clears it.")

    @field_validator("email")
    @classmethod
    def _email_stays(cls, email: str | None) -> str:
        if email is None:
            raise ValueError("may be left out, but not null")
        return email


class ListQuery(BaseModel):
    """The query string of GET /api/v1/users."""

    limit: int = Field(default=100, ge=1, le=1000, description="Users of a page at most.")
    skip: ID = Field(default=0, description="Users to pass over: costs more the deeper the page. Excludes `after`.")
    after: ID | None = Field(default=None, description="Only users with greater ids: `0`, then the last id of a page.")
    email: str | None = Field(default=None, description="Only the user with this address, whatever its case.")

    @model_validator(mode="after")
    def _one_way_to_page(self) -> Self:
        if self.after is not None and "skip" in self.model_fields_set:
            raise ValueError("skip and after cannot be used together")
        return self
