"""How tables look in notebooks: text on the left and never cut.

Owns nothing else. Importing it sets pandas' options for the session.
"""

from typing import Any

import pandas as pd
from pandas.io.formats.style import Styler

pd.set_option("display.max_colwidth", None)
pd.set_option("display.max_columns", None)


def text(frame: pd.DataFrame) -> Styler:
    """A table of words, aligned left. Its HTML is the same in every run (pandas would give it a random id)."""
    left: list[Any] = [{"selector": "th, td", "props": "text-align: left"}]
    return frame.style.set_uuid("text").set_table_styles(left)
