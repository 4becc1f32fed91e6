"""The schemas of requests, and of a user."""

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from api.resources.cursors import MAX_ID, Cursor
from api.resources.fields import ID, Time, read_time, text_schema, without_default, without_nul, without_null
from api.users.emails import Email

Name = Annotated[str, Field(max_length=255), AfterValidator(without_nul), text_schema(255)]
Address = Annotated[Email, WithJsonSchema({"type": "string", "format": "idn-email", "maxLength": 254})]
SearchText = Annotated[
    str, Field(min_length=1, max_length=255), AfterValidator(without_nul), text_schema(255, minLength=1)
]


class User(BaseModel):
    """A user. Every endpoint returns the same bytes for it."""

    # This model is for the documentation: PostgreSQL renders the bytes.
    model_config = ConfigDict(extra="forbid")

    id: Annotated[int, Field(ge=1, le=MAX_ID)]
    email: Annotated[Address, Field(description="Unique without regard to case.")]
    name: Name | None
    created_at: Annotated[datetime, Field(description="In UTC.")]
    updated_at: Annotated[datetime, Field(description="In UTC.")]


class UserPath(BaseModel):
    """The path of one user, for the documentation. The handlers parse it themselves: an invalid id is not found."""

    id: Annotated[int, Field(ge=1, le=MAX_ID, examples=[5])]


class UserCreate(BaseModel):
    """The body of POST."""

    email: Address
    name: Name | None = None


class UserUpdate(BaseModel):
    """The body of PATCH. A key that is absent leaves its value unchanged."""

    # `model_fields_set` has the keys that were sent.
    email: Address | None = Field(default=None, json_schema_extra=without_null)
    name: Name | None = Field(default=None, description="null clears it.")

    @field_validator("email")
    @classmethod
    def _email_stays(cls, email: str | None) -> str:
        if email is None:
            raise ValueError("may be left out, but not null")
        return email


class ListQuery(BaseModel):
    """The query string of GET /api/v1/users: four mutually exclusive listing modes, each with its parameters."""

    limit: int = Field(default=100, ge=1, le=1000, description="Maximum users in a page.")
    # Its default is left out of the documentation: some generated clients send each default that they find there.
    skip: ID = Field(
        default=0,
        description="Users to skip. The cost grows with the number. Excludes `after`.",
        json_schema_extra=without_default,
    )
    after: ID | None = Field(
        default=None, description="Only users after this id: the last id of the previous page, `0` for the first page."
    )
    email: str | None = Field(default=None, description="Only the user with this address, ignoring case.")
    q: SearchText | None = Field(
        default=None, description="Only users whose address or name begins with this, ignoring case; in that order."
    )
    order: Literal["id", "-id", "created_at", "-created_at"] | None = Field(
        default=None, description="The order of the pages; `-` reverses it."
    )
    created_after: Time | None = Field(default=None, description="Only users created later than this.")
    created_before: Time | None = Field(default=None, description="Only users created earlier than this.")
    cursor: Cursor | None = Field(default=None, description="The end of the previous page, from its header Link.")

    @property
    def is_search(self) -> bool:
        """True if pages are in the order of matches or of creation, and continue from a cursor."""
        return self.q is not None or self.is_by_creation

    @property
    def is_by_creation(self) -> bool:
        """True if pages are in the order of creation."""
        return bool(
            self.created_after or self.created_before or (self.order is not None and self.order.endswith("created_at"))
        )

    @model_validator(mode="after")
    def _one_listing_mode(self) -> Self:
        sent = self.model_fields_set
        if self.after is not None and "skip" in sent:
            raise ValueError("skip and after cannot be used together")
        if not sent <= _PLAIN:
            mode, allowed = self._mode()
            if excluded := [name for name in type(self).model_fields if name in sent - allowed - {"limit"}]:
                raise ValueError(f"{excluded[0]} cannot be used together with {mode}")
            if self.cursor is not None and self.is_by_creation:
                self.cursor = self.cursor._replace(key=read_time(self.cursor.key).isoformat())
        return self

    def _mode(self) -> tuple[str, set[str]]:
        """Return the parameter that selects the listing mode, for an error message, and the mode's parameters."""
        if self.email is not None:
            return "email", {"email"}
        if self.q is not None:
            return "q", {"q", "cursor"}
        if self.order in ("id", "-id"):
            return f"order={self.order}", {"order", "after", *(["skip"] if self.order == "id" else [])}
        if self.is_by_creation:
            return "the order of creation", {"order", "created_after", "created_before", "cursor"}
        return "the order of ids", {"after", "skip"}


_PLAIN = {"limit", "skip", "after", "email"}


OnConflict = Literal["error", "skip", "update"]
"""The treatment of an imported line whose address is taken."""


class ImportQuery(BaseModel):
    """The query string of POST /api/v1/users/import."""

    on_conflict: OnConflict = Field(
        default="error",
        description="If an address is taken: refuse the line, skip it, or update the user from it. If the line has no "
        "name, the name stays unchanged; null, in CSV an empty name, clears it.",
    )
    format: Literal["csv-safe"] | None = Field(
        default=None, description="A body of `text/csv` is an export of this format: its apostrophes are removed again."
    )


class ExportQuery(BaseModel):
    """The query string of GET /api/v1/users/export."""

    format: Literal["ndjson", "csv", "csv-safe"] | None = Field(
        default=None,
        description="Overrides the header Accept. `csv-safe` is CSV for spreadsheets: a text that begins as a formula "
        "may (`=`, `+`, `-`, `@`, a tab or a line break), or with an apostrophe, has an apostrophe before it.",
    )
