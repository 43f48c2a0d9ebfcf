"""What others released, read with suspicion and turned into sets: `moedd import`.

One file per family of formats (`dc`, `idm`, `mtt`, `idc`, `folders`, `ddranking`, `kip`, `hub`)
reads files into `Released`; `answers`, `classes` and `spaces` put together what files and person
say and refuse what nobody said; `build` writes the set. `foreign` opens pickles without running
them.
"""

from moedd.importers.answers import Answers
from moedd.importers.build import Imported, Request, import_release, open_release
from moedd.importers.choice import Choice

__all__ = ["Answers", "Choice", "Imported", "Request", "import_release", "open_release"]
