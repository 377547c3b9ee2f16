from aird.api import Check as Check
from aird.api import Evaluation as Evaluation
from aird.api import FoundDirection as FoundDirection
from aird.api import Patch as Patch
from aird.api import check as check
from aird.api import direction as direction
from aird.api import evaluate as evaluate
from aird.api import patch as patch

__version__: str
