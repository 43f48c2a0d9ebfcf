import moedd
import moedd.experts
def test_x(): print(moedd, moedd.experts, moedd.__version__)
