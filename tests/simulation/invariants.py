"""The invariants of docs/simulation.md, looked at after every act of the server, for the rooms it touched."""

import json
from collections import defaultdict
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

from django.conf import settings

from agents.models import Agent, Claim
from chatroom.errors import ChatroomError
from chatroom.models import Event, Message, Task
from machines.models import Placement, Run

from .questions import (
    AGENTS,
    CLAIMS,
    CUSTOM,
    DELIVERED,
    EVENTS,
    IDLE,
    LATE,
    LATER_CLAIM,
    OUTDATED_START,
    PLACED_THERE,
    REMOTE,
    RUNS,
    STARTS,
    TASKS,
    WANTED,
    rows,
)
from .tables import ACTIVE, FIRST, HELD, LIVE, TABLES

if TYPE_CHECKING:
    from .machines import SimRun
    from .programs import Program
    from .world import World

STATE_OF = {
    "agent": ("agents_agent", "status"),
    "task": ("chatroom_task", "status"),
    "run": ("machines_run", "state"),
    "command": ("machines_command", "state"),
    "machine": ("machines_machine", "status"),
}
FROZEN_WITHIN = 30.0
SHOWN_WITHIN = 15.0


class Checker:
    def __init__(self, world: "World") -> None:
        self.world = world
        self.last = 0
        self.known: dict[tuple[str, int], str] = {}
        self.incarnations: dict[int, str] = {}
        self.desired: dict[int, str] = {}
        self.exhausted: dict[int, tuple[int, int]] = {}  # agent: the placement and the machine in which it was given up
        self.answers: dict[str, Any] = {}
        self.accepted_messages: list[int] = []
        self.beat_at, self.beat_clock = 0.0, world.server_clock.now()
        self.outage_ended, self.misled_until = float("-inf"), float("-inf")
        self.acts = 0
        self.hidden_since: dict[str, float] = {}

    def violated(self, invariant: str, what: str, *, error: BaseException | None = None) -> None:
        self.world.fail(invariant, what, error=error)

    # After every act

    def after_act(self, name: str) -> None:
        self.acts += 1
        if name == "beat_pulse":
            self.note_beat()
        if self.world.violation is not None:
            return
        if events := rows(EVENTS, self.last):
            self.world.steps += 1
            self.look_at(events)
        if self.acts % 100 == 0:
            self.look_at_everything()

    def look_at(self, events: list[tuple[Any, ...]]) -> None:
        touched: dict[str, set[int]] = defaultdict(set)
        rooms = set()
        for event in events:
            self.last = event[0]
            touched[event[1]].add(event[2])
            rooms.add(event[9])
            self.world.note(f"{event[1]} {event[3] or event[2]} {event[4]}", f"{event[5]}→{event[6]} by {event[7]}: {event[8]}"[:150])
            self.check_move(event)
            self.check_timer(event)
            self.check_reason(event)
        for subject, ids in touched.items():
            self.compare(subject, ids)
        for room_id in sorted(rooms - {None}):
            self.check_room(room_id)
        if touched["command"] or touched["run"] or touched["agent"]:
            self.check_machines()

    def check_move(self, event: tuple[Any, ...]) -> None:
        """6: only declared moves, each from where the last one led."""
        _, subject, pk, _, trigger, before, after, _, _, _ = event
        if subject not in TABLES or not (before or after):
            return
        known = self.known.get((subject, pk), FIRST.get(subject, ""))
        if before and before != known:
            self.violated("6: one event for each change", f"{subject} {pk} {trigger} from {before!r}, but it was {known!r}")
        self.known[subject, pk] = after
        if not before:
            return
        sources, targets = TABLES[subject].get(trigger, (set(), set()))
        if before not in sources or after not in targets:
            self.violated("6: only declared moves", f"{subject} {pk}: {trigger} from {before} to {after}")
        if subject == "agent" and trigger in {"restart_initiated", "restart_exhausted", "restart_expired", "process_exited"}:
            self.check_restart(event)

    def check_restart(self, event: tuple[Any, ...]) -> None:
        _, _, pk, role, trigger, _, _, actor, _, _ = event
        if rows(CUSTOM, pk):
            self.violated("7: a custom agent is never restarted", f"{role}: {trigger} by {actor}")
        if trigger == "restart_exhausted":
            self.exhausted[pk] = Placement.objects.values_list("pk", "machine_id").get(agent_id=pk)
        elif trigger == "restart_initiated" and actor in self.world.people:
            self.exhausted.pop(pk, None)
        elif trigger == "restart_initiated" and self.is_exhausted(pk):
            self.violated("exhaustion is remembered", f"{role} was unrecoverable, and is restarted by {actor}")

    def is_exhausted(self, agent_id: int) -> bool:
        """No person has started it since. (What failed in one placement, on one machine, says nothing about another.)"""
        return agent_id in self.exhausted and bool(rows(PLACED_THERE, *self.exhausted[agent_id]))

    def check_reason(self, event: tuple[Any, ...]) -> None:
        """What is said of the cause is so."""
        _, subject, pk, role, trigger, _, _, _, reason, _ = event
        if subject == "agent" and trigger == "leave" and reason == "its program ended":
            current = self.incarnations.get(pk, "")
            if any(self.speaks(program, current) and not program.is_leaving for program in self.world.programs):
                self.violated("a late goodbye ends nobody else", f"{role} left, and its program lives")
        if subject == "task" and trigger == "fail_task" and reason.startswith("it crashed its agent"):
            self.check_crashes(pk)
        if subject == "agent" and trigger == "configure" and not self.is_exhausted(pk):
            self.exhausted.pop(pk, None)  # moved: when it comes back here, that is a beginning too
        if trigger == "create" and subject in {"run", "command"}:
            (self.check_wanted if subject == "run" else self.check_generation)(pk)

    def check_wanted(self, run_id: int) -> None:
        """9, 54: whatever was waited for, a process is started only if it is wanted still."""
        [(agent_id, role, desired, is_there)] = rows(WANTED, run_id)
        if desired != "running" or self.is_exhausted(agent_id) or not is_there:
            self.violated("9: only what is wanted is started", f"run {run_id} of {role} begins, which is {desired}")

    def check_generation(self, command_id: int) -> None:
        """56: each start has its own, by which late words of an older process are told from those of its own."""
        if found := rows(OUTDATED_START, command_id):
            self.violated("56: each start has its generation", f"command {command_id} has {found[0][0]}, as a run before it")

    def check_crashes(self, task_id: int) -> None:
        """27: only faulty exits while it was held, in this round."""
        task = Task.objects.get(pk=task_id)
        ended = Claim.objects.filter(task=task, round=task.round, outcome="process_exited", delivered_at__isnull=False)
        runs = [int(incarnation.removeprefix("run:")) for incarnation in ended.values_list("incarnation", flat=True)]
        faulty = Run.objects.filter(pk__in=runs, verdict="faulty").count()
        if faulty < settings.MAX_CRASHES:
            self.violated("27: only faulty exits count", f"task {task_id} failed for its crashes after {faulty} of them")

    def check_timer(self, event: tuple[Any, ...]) -> None:
        """1, 8: no timer declares anything during an outage of ours, nor in the quiet time after it; nobody heard of just now is dead."""
        _, subject, pk, role, trigger, _, _, _, reason, _ = event
        by_timer = trigger in {"heartbeat_expired", "restart_expired"} or (trigger == "disconnect" and "no sign of life for 45" in reason)
        now = self.world.loop.time()
        if not by_timer or self.world.clock_jumped or now < self.misled_until:
            return
        if now - self.beat_at > settings.PULSE_STALE_AFTER + 1 or now - self.outage_ended < settings.HEARTBEAT_TTL - 1:
            self.violated("8: quiet time", f"{subject} {role or pk}: {trigger} {now - self.outage_ended:.0f} s after an outage of ours")
        if trigger == "heartbeat_expired":
            self.check_death(pk, role)

    def check_death(self, agent_id: int, role: str) -> None:
        now = self.world.loop.time()
        incarnation = Agent.objects.values_list("incarnation", flat=True).get(pk=agent_id)
        heard = max((program.heard_at for program in self.world.programs if self.speaks(program, incarnation)), default=float("-inf"))
        if now - heard < settings.DROPPED_TTL - 1 and not self.world.is_frozen(agent_id):
            self.violated("8: nobody is falsely dead", f"{role} was heard of {now - heard:.1f} s ago")

    def speaks(self, program: Any, incarnation: str) -> bool:
        return incarnation in {program.incarnation, f"run:{program.run}"} and program.is_running

    def note_beat(self) -> None:
        """An outage is what the server's clock shows of it: a jump that makes up for it, or is over by the next beat, can't be seen."""
        now, clock = self.world.loop.time(), self.world.server_clock.now()
        if abs((clock - self.beat_clock).total_seconds()) > settings.PULSE_STALE_AFTER:
            self.outage_ended = now
        elif self.world.clock_jumped or now - self.beat_at > settings.PULSE_STALE_AFTER:
            self.misled_until = now + settings.HEARTBEAT_TTL
        self.world.clock_jumped = False
        self.beat_at, self.beat_clock = now, clock

    # What stands in the database

    def compare(self, subject: str, ids: set[int]) -> None:
        if subject not in TABLES or not ids:
            return
        table, column = STATE_OF[subject]
        for pk, found in rows(f"SELECT id, {column} FROM {table} WHERE id IN ({', '.join(map(str, ids))})"):
            known = self.known.get((subject, pk), FIRST.get(subject, ""))
            if found != known:
                self.violated("6: one event for each change", f"{subject} {pk} is {found}, its events say {known}")

    def check_room(self, room_id: int) -> None:
        agents = {row[0]: row for row in rows(AGENTS, room_id)}
        tasks = {row[0]: row for row in rows(TASKS, room_id)}
        self.incarnations |= {pk: row[3] for pk, row in agents.items()}
        for _, role, status, _, has_no_lease in agents.values():
            if status in LIVE and has_no_lease:
                self.violated("1: who lives has a lease", f"{role} is {status} without a lease")
        self.check_claims(agents, tasks, rows(CLAIMS, room_id))
        self.check_queues(tasks)

    def check_claims(self, agents: dict[int, Any], tasks: dict[int, Any], claims: list[tuple[Any, ...]]) -> None:
        """4, 5: one open claim per task and agent, and whoever holds it is there."""
        working = sorted(pk for pk, row in agents.items() if row[2] == "working")
        holders = sorted(claim[1] for claim in claims)
        held = sorted(pk for pk, row in tasks.items() if row[2] in HELD)
        if holders != working:
            roles = [agents[pk][1] for pk in set(holders) ^ set(working)]
            differ = f"working agents and open claims differ: {', '.join(roles) or holders}"
            self.violated("5: a task whose holder is gone is pending", differ)
        if sorted(claim[0] for claim in claims) != held:
            self.violated("4: one open claim per task", f"held tasks {held}, claimed tasks {sorted(claim[0] for claim in claims)}")
        for task_id, agent_id, incarnation, attempt in claims:
            if agents[agent_id][3] != incarnation:
                self.violated(
                    "4: one open claim per agent", f"{agents[agent_id][1]}'s open claim of task {task_id} is of another incarnation"
                )
            elif task_id in tasks and (tasks[task_id][3] != attempt or tasks[task_id][1] != agents[agent_id][1]):
                self.violated(
                    "4: one open claim per task", f"task {task_id} is at attempt {tasks[task_id][3]}, its open claim at {attempt}"
                )

    def check_queues(self, tasks: dict[int, Any]) -> None:
        active: dict[str, int] = defaultdict(int)
        for _, role, status, _ in tasks.values():
            active[role] += status in ACTIVE
        if double := [role for role, count in active.items() if count > 1]:
            self.violated("4: one active task per role", f"{double}")
        if stuck := {role for _, role, status, _ in tasks.values() if status == "queued" and not active[role]}:
            self.violated("8: nothing stranded", f"tasks are queued for {sorted(stuck)}, which has nothing else to do")

    def check_machines(self) -> None:
        """2, 5, 9."""
        starts = [row[0] for row in rows(STARTS)]
        if len(starts) != len(set(starts)):
            self.violated("2: one start in flight per agent", f"{starts}")
        unfinished = {f"run:{row[0]}" for row in rows(RUNS)}
        for role, incarnation in rows(REMOTE):
            if incarnation not in unfinished:
                self.violated("5: an ended run is no live agent", f"{role} is live as {incarnation}, which has ended")
        for agent_id, desired, by in rows("SELECT agent_id, desired_state, desired_by FROM machines_placement"):
            if self.desired.get(agent_id) == "stopped" and desired != "stopped" and by not in self.world.people:
                self.violated("9: who was stopped stays stopped", f"agent {agent_id} is {desired} again by {by}")
            self.desired[agent_id] = desired

    def look_at_everything(self) -> None:
        for subject, (table, _) in STATE_OF.items():
            self.compare(subject, {row[0] for row in rows(f"SELECT id FROM {table}")})
        for room_id in self.world.room_ids:
            self.check_room(room_id)
        self.check_machines()

    def swept(self, started: float) -> None:
        """1: whose lease is over is dead after one sweep."""
        now = self.world.loop.time()
        if self.world.violation is not None or self.beat_at <= started - settings.PULSE_STALE_AFTER + 1:
            return
        if now < max(self.outage_ended + settings.HEARTBEAT_TTL + 1, self.misled_until) or self.world.clock_jumped:
            return
        for role, status in LATE.plain_rows(time=self.world.server_clock.at(started)):
            self.violated("1: lease over, dead within one sweep", f"{role} is {status}")
        self.check_frozen(now)
        self.check_waiting()

    def check_waiting(self) -> None:
        """Whose connection stands is shown as waiting, once it has looked for work again; whatever became of an older connection."""
        now, hidden = self.world.loop.time(), {}
        for role, incarnation in rows(IDLE):
            if any(program.is_connected and self.speaks(program, incarnation) for program in self.world.programs):
                hidden[incarnation] = self.hidden_since.get(incarnation, now)
                if now - hidden[incarnation] > SHOWN_WITHIN:
                    self.violated("8: what is shown is true", f"{role} is shown as not waiting, and its program waits")
        self.hidden_since = hidden

    def check_frozen(self, now: float) -> None:
        """93: reported after 10 s, dead with the sweep after that, and nobody vouches for it; the same margin once more for the way."""
        for machine in self.world.machines:
            daemon = machine.daemon
            if daemon is None or not daemon.link.is_up or not machine.process.going.is_set() or machine.host.is_cut:
                continue
            for run in machine.living:
                since = max(run.stopped_at, daemon.link.up_since, daemon.started, self.outage_ended + settings.HEARTBEAT_TTL)
                if run.is_stopped and run.record is None and now - since > FROZEN_WITHIN:
                    for role in Agent.objects.filter(incarnation=f"run:{run.info.run}", status="working").values_list("role", flat=True):
                        self.violated("93: a frozen process is no holder", f"{role} is working {now - since:.0f} s after its SIGSTOP")

    # What programs and people see

    async def remembering(self, key: str, call: Awaitable[Any]) -> Any:
        """Keeps the first answer that the server gave to a key, whether or not it arrived."""
        response = await call
        answer = json.loads(response.content or b"null")
        if key and key not in self.answers:
            self.answers[key] = answer
            self.check_fencing(key)
        elif key and self.answers[key] != answer:
            self.violated("4: a repeat gets the first answer", f"{key}: {answer}, before: {self.answers[key]}")
        return response

    def refused(self, act: str, claim: str, key: str, error: ChatroomError) -> None:
        self.world.note(f"{act} refused", error.message)
        self.check_refusal(error.message)
        if "contradicts what is stored" in error.message:
            self.violated("the constraints are the last guard, never the first", error.message)
        if key and key in self.answers and error.code != "not_signed_in":
            self.violated("4: a repeat gets the first answer", f"{act} was done, its repeat is refused: {error.message}")

    def check_refusal(self, message: str) -> None:
        """5, 6: who shows life again is never told of a claim that was not its own any more."""
        if "resume_task is not possible" in message:
            self.violated("6: only what is free is resumed", message)

    def superseded(self, program: "Program") -> None:
        """13: only by a newer start, never by an older connection of its own."""
        agent = Agent.objects.get(room__slug=program.room, role=program.role)
        if self.speaks(program, agent.incarnation):
            self.violated("13: superseded by a newer start", f"{program.name} is told so, and it is the newest")

    def accepted(self, act: str, claim: str, answer: dict[str, Any]) -> None:
        if answer.get("message"):
            self.accepted_messages.append(answer["message"])

    def confirmed(self, claim: str) -> None:
        """22: what an agent believes to hold was delivered to it."""
        if not rows(DELIVERED, claim):
            self.violated("22: confirmed only what is held", f"claim {claim} was confirmed, but never delivered")

    def process_starts(self, run: "SimRun") -> None:
        """3: at most one live process per agent, ever; but for one that a person has given up."""
        for machine in self.world.machines:
            for other in machine.living:
                if other is not run and other.info.agent == run.info.agent and not self.was_given_up(other):
                    self.violated(
                        "3: one live process per agent", f"run {run.info.run} starts while run {other.info.run} lives on {machine.name}"
                    )

    def was_given_up(self, run: "SimRun") -> bool:
        return Run.objects.filter(pk=run.info.run, error_message__startswith="given up").exists()

    def check_fencing(self, key: str) -> None:
        """4: an act that was accepted for the first time was done by the newest claim of its task."""
        name, _, claim = key.partition(":")
        if claim.startswith("c_") and (later := rows(LATER_CLAIM, claim.partition(":")[0])):
            self.violated("4: an outdated claim is refused", f"{name} by attempt {later[0][0]} of task {later[0][1]} was accepted")

    def finally_stored(self) -> None:
        """12: whatever was accepted is there, once."""
        texts = list(Message.objects.filter(kind="chat").values_list("text", flat=True))
        if len(texts) != len(set(texts)):
            self.violated("4: nothing is done twice", f"a message stands twice: {[text for text in texts if texts.count(text) > 1][:2]}")
        missing = set(self.accepted_messages) - set(Message.objects.values_list("pk", flat=True))
        if missing:
            self.violated("12: what was accepted is stored", f"messages {sorted(missing)}")
        self.check_results()

    def check_results(self) -> None:
        ended: dict[int, int] = defaultdict(int)
        for pk in Message.objects.filter(kind__in=["handoff", "result"]).values_list("task_id", flat=True):
            ended[pk] += 1
        completed: dict[int, int] = defaultdict(int)
        for pk in Event.objects.filter(subject="task", trigger="complete_task").values_list("subject_id", flat=True):
            completed[pk] += 1
        if ended != completed:
            self.violated("4: nothing is done twice", f"results {dict(ended)}, completions {dict(completed)}")
        for message in Message.objects.filter(kind="handoff"):
            if (count := Task.objects.filter(message=message).count()) != 1:
                self.violated("4: nothing is done twice", f"handoff {message.pk} made {count} tasks")
