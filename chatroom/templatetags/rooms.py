from datetime import datetime
from typing import Any

from django import template
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.timezone import now

from chatroom.models import Event
from chatroom.nav import NavRow, read_nav
from chatroom.words import describe_event

register = template.Library()


@register.simple_tag(takes_context=True)
def nav_rows(context: dict[str, Any]) -> list[NavRow]:
    """The person's rooms; nobody's are none."""
    request = context.get("request")
    return read_nav(request.user) if request and request.user.is_authenticated else []


@register.simple_tag
def server_now() -> str:
    return now().isoformat()


@register.simple_tag
def clock(moment: datetime | None, seconds: bool = False) -> SafeString:
    """A time of the day. The page puts it into the reader's own zone."""
    if moment is None:
        return SafeString("")
    form = "%H:%M:%S" if seconds else "%H:%M"
    return format_html(
        '<time datetime="{}" data-clock="{}">{}</time>', moment.isoformat(), "seconds" if seconds else "minutes", moment.strftime(form)
    )


@register.simple_tag
def age(moment: datetime | None, form: str = "long") -> SafeString:
    """How long ago; the page lets it tick. `long` is '2 min', `timer` is '3:12'."""
    if moment is None:
        return SafeString("")
    seconds = max(0, int((now() - moment).total_seconds()))
    return format_html('<time datetime="{}" data-since="{}">{}</time>', moment.isoformat(), form, say_age(seconds, form=form))


@register.filter
def timer(span: Any) -> str:
    return say_age(int(span.total_seconds()), form="timer")


def say_age(seconds: int, *, form: str) -> str:
    """The same words as `static/js/times.js`."""
    if form == "timer":
        hours, minutes = seconds // 3600, seconds // 60 % 60
        return f"{hours}:{minutes:02}:{seconds % 60:02}" if hours else f"{minutes}:{seconds % 60:02}"
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


@register.filter
def described(event: Event) -> str:
    return describe_event(event)
