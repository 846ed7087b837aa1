"""The small Python project that the demo's agents work on: its files, what is wrong with them, and the message that mends it."""

FILES = {
    "README.md": """\
# shop

Carts and what they cost. Run the tests with `python -m unittest`.
""",
    ".gitignore": "__pycache__/\n",
    "shop/__init__.py": "",
    "shop/cart.py": '''\
"""What somebody wants to buy."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Item:
    name: str
    price: int  # cents, so that nothing is lost to rounding
    count: int = 1


@dataclass(frozen=True)
class Discount:
    name: str
    percent: int


@dataclass
class Cart:
    items: list[Item] = field(default_factory=list)
    discounts: list[Discount] = field(default_factory=list)
    total: int = 0

    @property
    def subtotal(self) -> int:
        """Before any discount."""
        return sum(item.price * item.count for item in self.items)

    def add(self, item: Item) -> None:
        self.items.append(item)
        self.total = self.subtotal
''',
    "shop/pricing.py": '''\
"""What a cart costs."""

from shop.cart import Cart


def apply_discounts(cart: Cart) -> int:
    """Sets the cart's total, discounts taken off, and returns it."""
    total = cart.total
    for discount in cart.discounts:
        total -= total * discount.percent // 100
    cart.total = total
    return total
''',
    "tests/__init__.py": "",
    "tests/test_cart.py": """\
import unittest

from shop.cart import Cart, Item


class CartTest(unittest.TestCase):
    def test_an_empty_cart_costs_nothing(self) -> None:
        self.assertEqual(Cart().subtotal, 0)

    def test_the_subtotal_counts_every_piece(self) -> None:
        cart = Cart()
        cart.add(Item("tea", 450, count=2))
        cart.add(Item("cup", 1200))
        self.assertEqual(cart.subtotal, 2100)
""",
    "tests/test_pricing.py": """\
import unittest

from shop.cart import Cart, Discount, Item
from shop.pricing import apply_discounts


class PricingTest(unittest.TestCase):
    def setUp(self) -> None:
        self.cart = Cart(discounts=[Discount("spring", 10)])
        self.cart.add(Item("lamp", 2000))

    def test_without_a_discount_the_subtotal_is_due(self) -> None:
        self.cart.discounts.clear()
        self.assertEqual(apply_discounts(self.cart), 2000)

    def test_a_discount_is_taken_off(self) -> None:
        self.assertEqual(apply_discounts(self.cart), 1800)

    def test_discounts_follow_one_another(self) -> None:
        self.cart.discounts.append(Discount("club", 50))
        self.assertEqual(apply_discounts(self.cart), 900)

    def test_pricing_a_cart_again_changes_nothing(self) -> None:
        apply_discounts(self.cart)
        self.assertEqual(apply_discounts(self.cart), 1800)


if __name__ == "__main__":
    unittest.main()
""",
}

MENDING = """\
diff --git a/shop/pricing.py b/shop/pricing.py
--- a/shop/pricing.py
+++ b/shop/pricing.py
@@ -5,7 +5,7 @@

 def apply_discounts(cart: Cart) -> int:
     \"\"\"Sets the cart's total, discounts taken off, and returns it.\"\"\"
-    total = cart.total
+    total = cart.subtotal
     for discount in cart.discounts:
         total -= total * discount.percent // 100
     cart.total = total
"""

FIRST_MESSAGE = f"""\
The discount is applied twice when a cart is priced again: `test_pricing_a_cart_again_changes_nothing` fails. This mends it.

```diff
{MENDING}```
"""
