"""What a client may send."""

from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, Field, field_validator, model_validator

from api.users.emails import Email

MAX_ID = 2**63 - 1
"""PostgreSQL's largest bigint."""


def _without_nul(text: str) -> str:
    # PostgreSQL's text cannot hold it.
    if "\0" in text:
        raise ValueError("must not contain NUL characters")
    return text


Name = Annotated[str, Field(max_length=255), AfterValidator(_without_nul)]
ID = Annotated[int, Field(ge=0, le=MAX_ID)]


class UserCreate(BaseModel):
    """The body of POST."""

    email: Email
    name: Name | None = None


class UserUpdate(BaseModel):
    """The body of PATCH. Which keys were sent is in `model_fields_set`: an absent key is left alone, null clears."""

    email: Email | None = None
    name: Name | None = None

    @field_validator("email")
    @classmethod
    def _email_stays(cls, email: str | None) -> str:
        if email is None:
            raise ValueError("may be left out, but not null")
        return email


class ListQuery(BaseModel):
    """The query string of GET /api/v1/users."""

    limit: int = Field(default=100, ge=1, le=1000)
    skip: ID = 0
    after: ID | None = None
    email: str | None = None

    @model_validator(mode="after")
    def _one_way_to_page(self) -> Self:
        if self.after is not None and "skip" in self.model_fields_set:
            raise ValueError("skip and after cannot be used together")
        return self
