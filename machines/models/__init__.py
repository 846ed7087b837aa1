from .command import Act, Command, CommandState
from .machine import Desired, Machine, MachineStatus, Mode, Placement
from .run import Run, RunLog, RunState

__all__ = ["Act", "Command", "CommandState", "Desired", "Machine", "MachineStatus", "Mode", "Placement", "Run", "RunLog", "RunState"]
