"""The pages of people and rooms."""

from django.urls import path

from .views import people, rooms

urlpatterns = [
    path("", rooms.home, name="home"),
    path("sign-in/", people.sign_in, name="sign_in"),
    path("sign-in/<str:secret>/", people.sign_in_link, name="sign_in_link"),
    path("sign-out/", people.sign_out, name="sign_out"),
    path("device/", people.device, name="device"),
    path("rooms/", rooms.room_create, name="room_create"),
    path("rooms/<slug:slug>/", rooms.room, name="room"),
    path("rooms/<slug:slug>/messages/", rooms.send_message, name="send_message"),
    path("rooms/<slug:slug>/messages/before/<int:before>/", rooms.earlier_messages, name="earlier_messages"),
    path("rooms/<slug:slug>/messages/<int:message_id>/", rooms.message_text, name="message_text"),
    path("rooms/<slug:slug>/backlog/", rooms.backlog_add, name="backlog_add"),
    path("rooms/<slug:slug>/tasks/<int:task_id>/history/", rooms.task_history, name="task_history"),
    path("rooms/<slug:slug>/tasks/<int:task_id>/<slug:act>/", rooms.task_act, name="task_act"),
    path("rooms/<slug:slug>/members/", rooms.member_add, name="member_add"),
]
