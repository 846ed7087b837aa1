from django.contrib import admin
from django.core.exceptions import DisallowedHost
from django.urls import include, path
from ninja import NinjaAPI

from agents.api import router as agents_router
from machines.api import router as machines_router

from . import probes, strays
from .api import router
from .api_docs import for_signed_in
from .api_tools import Bearer, translate_errors

api = NinjaAPI(title="Chatroom", version="1", auth=Bearer(), urls_namespace="api", docs_decorator=for_signed_in)
translate_errors(api)
api.add_exception_handler(DisallowedHost, strays.not_our_name)
api.add_router("", router)
api.add_router("", agents_router)
api.add_router("", machines_router)

handler404 = "chatroom.strays.not_found"
urlpatterns = [
    path("livez", probes.livez),
    path("readyz", probes.readyz),
    path("api/v1/", api.urls),
    path("admin/", admin.site.urls),
    path("", include("chatroom.page_urls")),
    # First, for those of agents take any word as an act.
    path("", include("machines.page_urls")),
    path("", include("agents.page_urls")),
]
