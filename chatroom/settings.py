"""Every setting, from the environment. Nothing here depends on which size the deployment has: URLs and process counts do."""

import hashlib
import os
import secrets
import sys
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from django.core.exceptions import ImproperlyConfigured

from chatroom.numbers import read_numbers

BASE_DIR = Path(__file__).resolve().parent.parent
TESTING = "pytest" in sys.modules
DEFAULT_HOME = Path(tempfile.gettempdir()) / f"chatroom-test-{os.getuid()}" if TESTING else BASE_DIR / "var"
CHATROOM_HOME = Path(os.environ.get("CHATROOM_HOME") or DEFAULT_HOME).resolve()
try:
    CHATROOM_HOME.mkdir(mode=0o700, parents=True, exist_ok=True)
except OSError as error:
    raise ImproperlyConfigured(f"CHATROOM_HOME={CHATROOM_HOME}: {error.strerror}: expected a directory that I may write to") from None

globals().update(NUMBERS := read_numbers())


def read_flag(name: str, *, default: bool) -> bool:
    found = os.environ.get(name, "")
    if found.lower() in {"1", "true", "yes", "on"}:
        return True
    if found.lower() in {"0", "false", "no", "off"}:
        return False
    if found:
        raise ImproperlyConfigured(f"{name}={found}: expected 1 or 0")
    return default


def read_secret_key() -> str:
    """One key per home, made once: every process of a deployment must sign alike."""
    if found := os.environ.get("CHATROOM_SECRET_KEY"):
        return found
    path = CHATROOM_HOME / "secret.key"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        pass
    else:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(64))
    return path.read_text()


DEBUG = read_flag("CHATROOM_DEBUG", default=False)
SECRET_KEY = read_secret_key()
ALLOWED_HOSTS = os.environ.get("CHATROOM_ALLOWED_HOSTS", "localhost,127.0.0.1,[::1]").split(",")
CSRF_TRUSTED_ORIGINS = [origin for origin in os.environ.get("CHATROOM_TRUSTED_ORIGINS", "").split(",") if origin]
PUBLIC_URL = os.environ.get("CHATROOM_URL", "")

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django_fsm",
    "django_htmx",
    "ninja",
    "axes",
    "csp",
    "chatroom",
    "agents",
    "machines",
]
MIDDLEWARE = [
    "chatroom.db.KeptConnectionsMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "csp.middleware.CSPMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
    "axes.middleware.AxesMiddleware",
]
# The API carries bearer tokens, never cookies: it needs no session, no CSRF, no page headers; and each middleware costs it time.
API_MIDDLEWARE = ["chatroom.api_tools.HeadersMiddleware"]

ROOT_URLCONF = "chatroom.urls"
ASGI_APPLICATION = "chatroom.asgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]

# A checkpoint inside a commit is what makes SQLite's slowest commits slow: the web process checkpoints in the background instead.
SQLITE_PRAGMAS = (
    f"PRAGMA journal_mode=WAL;PRAGMA synchronous={'OFF' if TESTING else 'FULL'};PRAGMA foreign_keys=ON;PRAGMA cache_size=-20000;"
    "PRAGMA mmap_size=134217728;PRAGMA wal_autocheckpoint=0;"
)


def read_database(url: str) -> dict[str, Any]:
    parts = urlsplit(url)
    if parts.scheme == "sqlite":
        options = {"timeout": 20, "transaction_mode": "IMMEDIATE", "init_command": SQLITE_PRAGMAS}
        path = unquote(parts.path).replace("//", "/", 1) or str(CHATROOM_HOME / "chatroom.sqlite3")
        # Tests need a file: threads and processes that race must share one database, as the program's do.
        test = {"NAME": str(CHATROOM_HOME / f"test-{os.getpid()}.sqlite3")}
        return {"ENGINE": "django.db.backends.sqlite3", "NAME": path, "OPTIONS": options, "CONN_MAX_AGE": None, "TEST": test}
    if parts.scheme in {"postgres", "postgresql"}:
        return {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": unquote(parts.path.lstrip("/")),
            "USER": unquote(parts.username or ""),
            "PASSWORD": unquote(parts.password or ""),
            "HOST": parts.hostname or "",
            "PORT": parts.port or "",
            "CONN_MAX_AGE": None,
            "CONN_HEALTH_CHECKS": False,
            # With parameters apart from the text, PostgreSQL plans a statement that comes again and again only once.
            "OPTIONS": {"connect_timeout": 5, "server_side_binding": True, "prepare_threshold": 2},
        }
    raise ImproperlyConfigured(
        f"DATABASE_URL={parts.scheme or '?'}://…: expected sqlite:///path or postgres://user:password@host:5432/name"
    )


DATABASES = {"default": read_database(os.environ.get("DATABASE_URL") or "sqlite://")}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"


def short_socket_path(path: Path) -> Path:
    """Unix sockets have at most 107 bytes of path: a deep home gets a short, private place of its own."""
    name = f"chatroom-{os.getuid()}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:12]}"
    # A temporary folder may be as deep as the home.
    places = [os.environ.get("XDG_RUNTIME_DIR", ""), tempfile.gettempdir(), "/tmp"]
    found = [path, *(Path(place) / name / "valkey.sock" for place in places if place)]
    return next(socket for socket in found if len(os.fsencode(socket)) < 100)


EMBEDDED_VALKEY = not os.environ.get("REDIS_URL")
VALKEY_SOCKET = short_socket_path(CHATROOM_HOME / "run" / "valkey.sock")
REDIS_URL = os.environ.get("REDIS_URL") or f"unix://{VALKEY_SOCKET}?db=0"
REDIS_PREFIX = os.environ.get("CHATROOM_REDIS_PREFIX", "chatroom")
CHANNEL_LAYERS = {
    "default": {
        "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
        "CONFIG": {
            "hosts": [{"address": REDIS_URL, "socket_timeout": 5, "socket_connect_timeout": 2}],
            "prefix": REDIS_PREFIX,
        },
    }
}

# A Celery task must end within the visibility timeout, else a second worker gets it too; every job is safe to run twice.
CELERY_BROKER_URL = f"redis+socket://{VALKEY_SOCKET}?virtual_host=0" if EMBEDDED_VALKEY else REDIS_URL
CELERY_BROKER_TRANSPORT_OPTIONS = {
    "visibility_timeout": 60,
    "unacked_restore_interval": 2,
    "unacked_restore_throttle": 1,
    "global_keyprefix": f"{REDIS_PREFIX}:celery:",
    "socket_timeout": 5,
    "socket_connect_timeout": 2,
    "socket_keepalive": True,
}
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_CONNECTION_MAX_RETRIES = None
CELERY_TASK_DEFAULT_QUEUE = "default"
CELERY_TASK_ROUTES = {"chatroom.tasks.sweep": {"queue": "sweep"}}
CELERY_TASK_ACKS_LATE = True
CELERY_TASK_REJECT_ON_WORKER_LOST = True
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_PUBLISH_RETRY = False
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_BEAT_SCHEDULE_FILENAME = str(CHATROOM_HOME / "run" / "beat")
CELERY_BEAT_SCHEDULE = {
    "sweep": {
        "task": "chatroom.tasks.sweep",
        "schedule": NUMBERS["SWEEP_INTERVAL"],
        # A sweep that nobody fetched in time is worth nothing: the next one does its work.
        "options": {"queue": "sweep", "expires": NUMBERS["SWEEP_INTERVAL"]},
    }
}

AUTHENTICATION_BACKENDS = ["axes.backends.AxesStandaloneBackend", "django.contrib.auth.backends.ModelBackend"]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in ("UserAttributeSimilarityValidator", "MinimumLengthValidator", "CommonPasswordValidator", "NumericPasswordValidator")
]
if TESTING:  # the real one is slow on purpose
    PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
AXES_FAILURE_LIMIT = 10
AXES_COOLOFF_TIME = 0.25
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"]]
AXES_RESET_ON_SUCCESS = True
AXES_VERBOSE = False
AXES_LOCKOUT_TEMPLATE = "chatroom/locked_out.html"
LOGIN_URL = "sign_in"
LOGIN_REDIRECT_URL = "home"
LOGOUT_REDIRECT_URL = "sign_in"
SESSION_COOKIE_AGE = 30 * 86400
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = CSRF_COOKIE_SAMESITE = "Lax"
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = read_flag("CHATROOM_HTTPS", default=False)
# Two deployments on one host must not share cookies, which know no ports.
COOKIE_SUFFIX = hashlib.sha256(SECRET_KEY.encode()).hexdigest()[:8]
SESSION_COOKIE_NAME, CSRF_COOKIE_NAME = f"chatroom_session_{COOKIE_SUFFIX}", f"chatroom_csrf_{COOKIE_SUFFIX}"
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if read_flag("CHATROOM_BEHIND_PROXY", default=False) else None
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": ["'none'"],
        "script-src": ["'self'"],
        "style-src": ["'self'"],
        "img-src": ["'self'", "data:"],
        "font-src": ["'self'"],
        "connect-src": ["'self'"],
        "form-action": ["'self'"],
        "frame-ancestors": ["'none'"],
        "base-uri": ["'none'"],
    }
}
DATA_UPLOAD_MAX_MEMORY_SIZE = 2 * 1024 * 1024
MAX_TEXT_BYTES = 256 * 1024

LANGUAGE_CODE = "en"
USE_I18N = False
USE_TZ = True
TIME_ZONE = "UTC"

STATIC_URL = "static/"
STATICFILES_DIRS = [BASE_DIR / "static"]
STATIC_ROOT = CHATROOM_HOME / "static"
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {
        "BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"
        if TESTING
        else "whitenoise.storage.CompressedManifestStaticFilesStorage"
    },
}

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": os.environ.get("CHATROOM_LOG_LEVEL", "INFO")},
    "loggers": {
        "daphne": {"level": "WARNING"},
        "axes": {"level": "WARNING"},
        "celery.worker.strategy": {"level": "WARNING"},
        "celery.app.trace": {"level": "WARNING"},
        "celery.beat": {"level": "WARNING"},
        # It warns that a unix socket has no host name.
        "kombu.connection": {"level": "ERROR"},
    },
}
SILENCED_SYSTEM_CHECKS = ["axes.W003"]
