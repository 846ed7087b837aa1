"""Fails, saying what is missing, unless the PostgreSQL and the Redis of DATABASE_URL and REDIS_URL answer."""

import os
import sys
from urllib.parse import urlsplit

import psycopg
import redis


def main() -> int:
    database, broker = os.environ["DATABASE_URL"], os.environ["REDIS_URL"]
    try:
        psycopg.connect(urlsplit(database)._replace(scheme="postgresql", path="/postgres").geturl(), connect_timeout=5).close()
    except psycopg.Error as error:
        return refuse("PostgreSQL", error, variable="DATABASE_URL_FOR_TESTS=postgres://user@host:5432/name")
    try:
        redis.Redis.from_url(broker, socket_connect_timeout=5).ping()
    except redis.RedisError as error:
        return refuse("Redis", error, variable="REDIS_URL_FOR_TESTS=redis://host:6379/9")
    return 0


def refuse(name: str, error: Exception, *, variable: str) -> int:
    print(f"chatroom: {name} does not answer: {error}\nname yours: make test-services {variable}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
