"""What the first start prepares: an owner, a room, the token of this host's own commands."""

import getpass
import os
from pathlib import Path

from django.conf import settings
from django.contrib.auth.models import User

from chatroom.models import Room, Token, TokenKind
from chatroom.models.token import hash_secret

from .rooms import create_room
from .tokens import issue_sign_in_link

__all__ = ["ensure_first_room", "ensure_owner", "ensure_owner_token", "issue_sign_in_link"]


def ensure_owner() -> User:
    """The first superuser; made without a password, so that only the sign-in link works until they choose one."""
    owner = User.objects.filter(is_superuser=True, is_active=True).order_by("pk").first()
    if owner is None:
        owner = User.objects.create_superuser(free_username())
        owner.set_unusable_password()
        owner.save()
    ensure_owner_token(owner)
    return owner


def free_username() -> str:
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a container's user without an entry
        name = "owner"
    name = "owner" if name in {"", "root"} else name
    return name if not User.objects.filter(username=name).exists() else f"{name}-owner"


def ensure_owner_token(owner: User) -> Path:
    """`owner.token` in the home: whoever can read the home already owns the data, so the commands need no sign-in there."""
    path = settings.CHATROOM_HOME / "owner.token"
    if path.exists() and Token.objects.usable().filter(hash=hash_secret(path.read_text().strip()), user=owner).exists():
        return path
    _, secret = Token.objects.issue(kind=TokenKind.PERSON, name="commands on the server's host", user=owner)
    draft = path.with_suffix(".new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secret)
    draft.replace(path)
    return path


def ensure_first_room(owner: User) -> Room:
    return Room.objects.order_by("pk").first() or create_room("Demo", team="pair", owner=owner)
