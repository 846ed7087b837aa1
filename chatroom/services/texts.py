"""Untrusted text as it may be stored."""

from django.conf import settings

from chatroom.errors import Invalid, TooLarge


def clean_text(text: str) -> str:
    """No NUL and no lone surrogate, which the database refuses; not blank; within the limit."""
    text = clean_reason(text)
    if not text.strip():
        raise Invalid("the text is empty: expected something to say")
    return text


def clean_reason(text: str) -> str:
    """The same for what may be left out."""
    text = text.replace("\r\n", "\n")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise Invalid("the text has a lone surrogate: expected valid Unicode") from None
    if size > settings.MAX_TEXT_BYTES:
        raise TooLarge(f"the text has {size} bytes: expected at most {settings.MAX_TEXT_BYTES}")
    if "\0" in text:
        raise Invalid("the text has a NUL character: expected text")
    return text
