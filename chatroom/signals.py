"""What the rooms app tells the apps above it, inside the transaction of the change; every receiver holds the room's lock already."""

from django.dispatch import Signal

room_created = Signal()  # room
task_pending = Signal()  # task: it can be claimed from now on; agent: of its role, where the sender has it at hand
task_left_holder = Signal()  # task, outcome, actor, reason: a person took it from whoever holds it
