"""What people do with agents, on a room's page."""

from django.urls import path

from . import views

urlpatterns = [
    path("rooms/<slug:slug>/agents/<slug:role>/history/", views.agent_history, name="agent_history"),
    path("rooms/<slug:slug>/agents/<slug:role>/prompt/", views.agent_prompt, name="agent_prompt"),
    path("rooms/<slug:slug>/agents/<slug:role>/<slug:act>/", views.agent_act, name="agent_act"),
]
