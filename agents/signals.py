"""What the agents app asks and tells the apps above it, inside the transaction; every receiver holds the room's lock already."""

from django.dispatch import Signal

join_requested = Signal()  # agent, principal: a receiver raises RoleNotYours when a remote agent's token is not its current run's
agent_joined = Signal()  # agent, principal
agent_lost = Signal()  # agent: it was declared dead by a timer
agent_sought = Signal()  # agent: a receiver that knows where it lives returns the machine's name
