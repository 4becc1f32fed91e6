"""Fields of requests: a JSON value of another type is a validation error, whatever the field."""

from typing import Annotated, Any, get_args, get_origin

import pytest
from pydantic import create_model

from api.errors import Problem
from api.http.request import parse_json
from api.resources import cursors, fields
from api.users import emails, schemas

FIELDS = {
    name: found
    for module in (fields, cursors, emails, schemas)
    for name, found in vars(module).items()
    if get_origin(found) is Annotated
}
"""Every type that a request's model can use."""
WRONG = ["null", "5.5", "1e400", "[]", "{}", '[""]', '{"a":"2026-01-31T09:30:00Z"}']
NO_TEXT = [*WRONG, "5", "-1", "true", str(2**64)]
NO_ID = [*WRONG, "-1", '""', '"x"', str(2**63)]


def test_the_types_are_found() -> None:
    assert {"Time", "ID", "Cursor", "Email", "Address", "Name", "SearchText"} <= FIELDS.keys()


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, of in FIELDS.items() for value in (NO_ID if get_args(of)[0] is int else NO_TEXT)],
)
def test_another_type_is_a_validation_error(name: str, value: str) -> None:
    of: Any = FIELDS[name]
    model = create_model("Body", field=(of, ...))
    with pytest.raises(Problem) as refused:
        parse_json(model, b'{"field":%s}' % value.encode())
    assert (refused.value.status, refused.value.kind) == (422, "invalid")
    assert [error["loc"][:2] for error in refused.value.errors or ()] == [["body", "field"]]
