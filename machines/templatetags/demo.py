from typing import Any

from django import template

from machines.offer import describe_offer

register = template.Library()


@register.inclusion_tag("machines/_demo_offer.html", takes_context=True)
def demo_offer(context: dict[str, Any]) -> dict[str, Any]:
    """The first message of the demo room; an empty place in every other room, and once it was sent."""
    shared: dict[str, Any] = {name: context[name] for name in ("can_act", "csrf_token", "request") if name in context}
    return {**shared, **describe_offer(context["room"])}
