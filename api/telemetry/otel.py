"""Tracing, if the standard OTEL_* variables enable it: its packages are imported only then."""

import logging
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from api.telemetry.tracing import Tracing

logger = logging.getLogger("api.telemetry")

_ENABLING = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_TRACES_EXPORTER")


def tracing_from_environment() -> "Tracing | None":
    """Return the tracing that the OTEL_* variables enable, None if they do not. Logs a warning if it cannot start."""
    enabling = [name for name in _ENABLING if os.environ.get(name)]
    is_disabled = (
        os.environ.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "none"
        or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    )
    if not enabling or is_disabled:
        return None
    try:
        from api.telemetry.tracing import make_tracing

        return make_tracing()
    except (ImportError, LookupError) as error:
        # A platform may set the variables for every container, so this must not keep the service from starting.
        logger.warning("%s is set, but there are no traces: %s; pip install 'users-api[otel]'", enabling[0], error)
    except ValueError as error:  # of a variable
        logger.warning("%s is set, but there are no traces: %s", enabling[0], error)
    return None
