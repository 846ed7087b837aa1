from typing import Any

from django import template

from machines.fleet import read_fleet

register = template.Library()


def fleet_of(context: dict[str, Any]) -> dict[str, Any]:
    request = context.get("request")
    return {"fleet": read_fleet(request.user if request else None), "page": request.path if request else ""}


@register.inclusion_tag("machines/_nav_section.html", takes_context=True)
def fleet_nav(context: dict[str, Any]) -> dict[str, Any]:
    """The person's machines, below their rooms."""
    return fleet_of(context)


@register.inclusion_tag("machines/_top.html", takes_context=True)
def fleet_top(context: dict[str, Any]) -> dict[str, Any]:
    return fleet_of(context)


@register.inclusion_tag("machines/_log_sheet.html")
def log_sheet() -> dict[str, Any]:
    """Where an agent's output is shown, above the page."""
    return {}
