"""The OpenAPI operations of import and export."""

from api.errors import StoppingError, problem_of
from api.http.operation import Content, Operation, ResponseDoc, invalid_example
from api.users.bulk.formats import not_acceptable, not_importable
from api.users.bulk.parsing import no_columns
from api.users.bulk.problems import client_silent, import_stopped, too_many_at_once
from api.users.bulk.report import MAX_REFUSAL_BYTES, MAX_REFUSALS
from api.users.schemas import ExportQuery, ImportQuery

_NDJSON, _CSV = "application/x-ndjson", "text/csv"
# Generated clients treat text/* as text, and JSON-encode any other string that is not said to be binary.
_BYTES, _TEXT = {"type": "string", "format": "binary"}, {"type": "string"}
_ADA_NDJSON = '{"id":5,"email":"ada@example.com","name":"Ada","created_at":"…","updated_at":"…"}\n'
_ADA_CSV = "id,email,name,created_at,updated_at\n5,ada@example.com,Ada,…,…\n"

IMPORT_USERS = Operation(
    summary="Import users",
    description="A file of any length, one user per line, each validated as in a single creation. A line that cannot be"
    " imported is refused, and the import continues. Users are written in chunks of at most 1,000, each as a whole or "
    "not at all.",
    query=ImportQuery,
    body=[
        Content(_BYTES, '{"email": "ada@example.com", "name": "Ada"}\n', _NDJSON),
        Content(_TEXT, "email,name\nada@example.com,Ada\n", _CSV),
    ],
    responses={
        200: ResponseDoc(
            "A line of JSON for each refused line (`line`, `problem`), sometimes the `progress`, and at the end a "
            f"`summary`. Refusals beyond {MAX_REFUSALS:,}, or beyond {MAX_REFUSAL_BYTES >> 20} MiB of these lines, are "
            "only counted: in `refused` with the others, and in `unreported`, which is absent otherwise. With "
            "`complete: false`, `problem` ended the import after the line `lines`; if it is `outcome-unknown`, users "
            "after that line may have been written. Without a summary, the connection ended the import.",
            [
                Content(
                    _BYTES,
                    '{"line":7,"problem":{"type":"urn:problem:users-api:email-taken","title":"Conflict","status":409,'
                    '"detail":"Email already registered","request_id":"2b9ea715591e7aa5"}}\n'
                    '{"summary":{"complete":true,"lines":9,"created":8,"updated":0,"skipped":0,"refused":1,'
                    '"seconds":0.004}}\n',
                    _NDJSON,
                )
            ],
        )
    },
    problems=[
        client_silent(25),
        not_importable(),
        no_columns("email is missing"),
        invalid_example(ImportQuery, "query", {"on_conflict": "ignore"}),
        too_many_at_once(),
        import_stopped(),
    ],
)
EXPORT_USERS = Operation(
    summary="Export users",
    description="Every user in the order of their ids, from one snapshot taken at the time of the request. If the "
    "connection ends before the end of the body (RFC 9112, section 7.1), the export is incomplete.",
    query=ExportQuery,
    responses={
        200: ResponseDoc(
            "One line per user.",
            [Content(_BYTES, _ADA_NDJSON, _NDJSON), Content(_TEXT, _ADA_CSV, _CSV)],
        )
    },
    problems=[
        not_acceptable(),
        invalid_example(ExportQuery, "query", {"format": "xml"}),
        too_many_at_once(),
        problem_of(StoppingError),
    ],
)
