"""`manage.py up`: prepares the home, starts every part, watches them, starts again what dies, and ends them all."""
