"""The whole of Chatroom under a virtual clock: docs/simulation.md."""
