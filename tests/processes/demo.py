"""The demo's repository, for rooms of the tests."""

import subprocess

from tests.processes.program import Program

WRONG = """\
A cart of one piece costs the same either way.

```diff
--- a/shop/cart.py
+++ b/shop/cart.py
@@ -26,7 +26,7 @@
     @property
     def subtotal(self) -> int:
         \"\"\"Before any discount.\"\"\"
-        return sum(item.price * item.count for item in self.items)
+        return sum(item.price for item in self.items)

     def add(self, item: Item) -> None:
         self.items.append(item)
```
"""


def git(program: Program, *words: str, room: str) -> str:
    repository = program.home / "demo" / room
    return subprocess.run(["git", "-C", str(repository), *words], capture_output=True, text=True, check=True).stdout.strip()


def clone_shop(program: Program, room: str) -> None:
    """A repository of the room's own, as the demo's was at first."""
    git(program, "clone", "--quiet", str(program.home / "demo" / "shop"), str(program.home / "demo" / room), room="shop")
    first = git(program, "rev-list", "--max-parents=0", "HEAD", room=room)
    git(program, "reset", "--quiet", "--hard", first, room=room)
