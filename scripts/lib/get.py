"""`get.py URL [TOKEN]`: prints what the address answers; ends with 1 when it is not well. Python is what a clean machine has for sure."""

import sys
from urllib.error import URLError
from urllib.request import ProxyHandler, Request, build_opener

LIMIT = 10.0  # s


def main(url: str, token: str = "") -> int:
    request = Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with build_opener(ProxyHandler({})).open(request, timeout=LIMIT) as answer:
            print(answer.read().decode())
    except (URLError, OSError) as error:
        print(f"{url}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
