"""How a worker process begins. Importing this costs nothing."""

import os
import threading
from multiprocessing import connection, parent_process


def end_with_parent() -> None:
    """From now on this worker ends when its parent does, even by SIGKILL."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
