import sys

from chatroom.client.main import main

sys.exit(main())
