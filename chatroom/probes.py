"""`/livez`: this process answers. `/readyz`: it serves. No details: both are open to everybody."""

import asyncio

from django.db import DatabaseError, InterfaceError
from django.http import HttpRequest, HttpResponse

from . import ending
from .db import in_liveness
from .models import Pulse


async def livez(request: HttpRequest) -> HttpResponse:
    return HttpResponse("ok\n", content_type="text/plain")


async def readyz(request: HttpRequest) -> HttpResponse:
    try:
        async with asyncio.timeout(3):
            is_serving = await in_liveness(Pulse.objects.exists) and not ending.ending
    except (DatabaseError, InterfaceError, TimeoutError):
        is_serving = False
    return HttpResponse("ok\n" if is_serving else "not ready\n", status=200 if is_serving else 503, content_type="text/plain")
