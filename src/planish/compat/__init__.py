"""Other libraries' calls, answered by planish: code that was written for them runs with another import.

`from planish.compat import AutoAttack` stands for `from autoattack import AutoAttack`, and
`from planish.compat import torchattacks` for `import torchattacks`. Names, arguments and what is returned are
theirs, so that objects here keep a state; what is searched, counted and judged is planish's.
"""

from typing import TYPE_CHECKING

from planish.registry import lazy

if TYPE_CHECKING:
    from planish.compat import torchattacks as torchattacks
    from planish.compat.autoattack import AutoAttack as AutoAttack

__getattr__, __dir__, __all__ = lazy(__name__)
