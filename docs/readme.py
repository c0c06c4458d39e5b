"""README.md from nbs/index.ipynb: its text, its shown code and its tables, as they were last run.

    python docs/readme.py
"""
from pathlib import Path
import nbformat

ROOT = Path(__file__).resolve().parents[1]

def shown(cell):
    "A cell as Markdown: prose as it is, code unless it is hidden, and what it displayed."
    if cell.cell_type == "markdown": return cell.source
    if cell.cell_type != "code" or "#| hide" in cell.source: return ""
    parts = [] if "#| echo: false" in cell.source else [f"```python\n{cell.source}\n```"]
    for output in cell.outputs:
        data = output.get("data", {})
        if "text/markdown" in data: parts.append(data["text/markdown"])
        elif "text/plain" in data: parts.append(f"```\n{data['text/plain']}\n```")
    return "\n\n".join(parts)

def readme():
    "The whole README."
    cells = nbformat.read(ROOT/"nbs"/"index.ipynb", 4).cells
    head = "<!-- Made from nbs/index.ipynb by docs/readme.py: edit the notebook. -->\n"
    return head + "\n\n".join(text.strip() for text in map(shown, cells) if text.strip()) + "\n"

if __name__ == "__main__": (ROOT/"README.md").write_text(readme())
