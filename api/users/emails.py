"""A faster email field, with the same results as pydantic's `EmailStr`.

`EmailStr` passes every address to email-validator, which walks it several times in Python, character by character. For
an ordinary ASCII address the result is known beforehand: valid, the local part unchanged, the domain in lower case.
`Email` returns that itself if it is certain, and passes every other address on as `EmailStr` does. That includes every
invalid address, so all error messages are those of `EmailStr`.

The conditions are from `validate_email` in pydantic/networks.py and from `split_email`,
`validate_email_local_part`, `validate_email_domain_name` and `validate_email_length` in email_validator/syntax.py.
tests/users/test_emails.py compares the two.

email-validator's settings (`STRICT`, `ALLOW_QUOTED_LOCAL`, `TEST_ENVIRONMENT`...) may change at any time: none of them
alters the result for an address that the fast path accepts. A special-use domain has to be added before this module is
imported. One that is removed later takes effect at once.
"""

import re
import unicodedata
from contextlib import suppress
from typing import Annotated, Protocol

import email_validator
from email_validator.rfc_constants import CASE_INSENSITIVE_MAILBOX_NAMES
from pydantic import AfterValidator, WithJsonSchema, validate_email

from api.resources.fields import lower

# Below every limit at once: 254 for the address, 253 for its domain, 64 for its local part (which email-validator
# checks only if STRICT) and 63 for a label.
_SHORT = 64

# A dot-atom (RFC 5322 3.2.3, `ATEXT` of email_validator/rfc_constants.py): no quotes, no blanks, no angle brackets.
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]++"
# Hostname labels (RFC 1123 2.1) without two hyphens in a row: neither Punycode nor a reserved "ab--" (RFC 5890 2.3.1).
_WORD = "[A-Za-z0-9]++"
# At least one dot in the domain, and letters alone after the last one. The classes are spelt out because with
# IGNORECASE [a-z] would match the Kelvin sign too. Only they have possessive quantifiers: those of groups are wrong in
# Python before 3.11.5, which Debian 12 has. What is left to backtrack ends at the first dot or hyphen.
_is_plain = re.compile(rf"{_ATOM}(?:\.{_ATOM})*@{_WORD}(?:[.-]{_WORD})*\.[A-Za-z]++").fullmatch

_SPECIAL_USE = tuple(f"{before}{name}" for name in email_validator.SPECIAL_USE_DOMAIN_NAMES for before in "@.")
_ENCODED_LABEL = re.compile(r"(?<![^.])xn--([a-z0-9-]{1,59})(?![^.])", re.IGNORECASE | re.ASCII)
_ANY_CASE = frozenset(CASE_INSENSITIVE_MAILBOX_NAMES)


def _validate(address: str) -> str:
    if len(address) <= _SHORT and _is_plain(address):
        normalized = address
        if not address.islower():
            local, _, domain = address.partition("@")
            # RFC 2142's mailboxes (postmaster, info...) are the same in any case.
            lowered = local.lower()
            normalized = f"{lowered if lowered in _ANY_CASE else local}@{domain.lower()}"
        if not normalized.endswith(_SPECIAL_USE):
            return normalized
    # The same as `EmailStr`. email-validator limits the result to 254 octets, so max_length needs no check.
    return validate_email(address)[1]


Email = Annotated[
    str,
    AfterValidator(_validate),  # after pydantic's str, which rejects other types as it does for EmailStr
    WithJsonSchema({"type": "string", "format": "email", "maxLength": 254}),
]
"""`Annotated[EmailStr, Field(max_length=254)]`: the same values, errors and JSON schema."""


def stored_form(text: str) -> str:
    """Return an address, or its beginning, as one is stored: in NFC, with a domain in Unicode.

    Of a beginning only whole labels of the domain can be decoded (Punycode, RFC 3492).
    """
    if "@" in text:
        with suppress(ValueError):
            return _validate(text)
    local, at, domain = unicodedata.normalize("NFC", text).rpartition("@")
    return local + at + (_ENCODED_LABEL.sub(_decode_label, domain) if at else domain)


def _decode_label(label: re.Match[str]) -> str:
    try:
        decoded = label[1].encode().decode("punycode")
        decoded.encode()  # It can hold lone surrogates, which PostgreSQL does not take.
    except UnicodeError:
        return label[0]
    return decoded


class HasEmail(Protocol):
    """Any object with the email of a user."""

    @property
    def email(self) -> str:
        """The address, in its original case."""


def email_key(user: HasEmail) -> str:
    """Return the key of a user's address in the index users_email_key: two users cannot have the same key."""
    return lower(user.email)
