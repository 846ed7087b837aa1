"""What people are told, once per episode: it stands in the room at once, and a job passes it on to each member."""

from django.contrib.auth.models import User
from django.utils.timezone import now

from .events import record_event
from .jobs import enqueue, job
from .models import Notice, Room, Task
from .rows import insert_new
from .services.messages import post_notice
from .services.rooms import room_locked


def tell(room: Room, episode: str, *, text: str, task: Task | None = None) -> bool:
    """Under the room's lock. False if people were told in this episode already."""
    notice = insert_new(Notice(episode=episode, room=room, task=task, text=text))
    if notice is None:
        return False
    post_notice(room, text, task=task)
    enqueue("pass_on_notice", notice_id=notice.pk)
    return True


@job
def pass_on_notice(notice_id: int) -> None:
    """To whoever is a member now. In the browser that is the rooms list; mail and chat programs will be told from here too."""
    with room_locked(Notice.objects.values_list("room_id", flat=True).get(pk=notice_id)) as room:
        notice = Notice.objects.get(pk=notice_id)
        members = User.objects.filter(rooms=room, is_active=True).count()
        notice.told_at = now()
        notice.save()
        record_event(room, "tell", actor="chatroom", room_id=room.pk, reason=notice.text, data={"notice": notice.pk, "members": members})
