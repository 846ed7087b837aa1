"""Machines, and what people do with the agents that live on them."""

from django.urls import path

from . import views

AGENT = "rooms/<slug:slug>/agents/<slug:role>/"

urlpatterns = [
    path("machines/", views.machines, name="machines"),
    path("machines/<int:machine_id>/ping/", views.machine_ping, name="machine_ping"),
    path("machines/<int:machine_id>/revoke/", views.machine_revoke, name="machine_revoke"),
    path(AGENT + "run/<slug:act>/", views.agent_command, name="agent_command"),
    path(AGENT + "configuration/", views.agent_configuration, name="agent_configuration"),
    path(AGENT + "log/", views.agent_log, name="agent_log"),
]
