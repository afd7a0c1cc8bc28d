"""The demo's page: HTML without scripts, with players, pictures and the memory timeline as an inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from .demo import Step, Timeline

__all__ = ["render_page"]

MIB = 1 << 20
_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
body { max-width: 56rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin: 0 }
section { border: 1px solid #8884; border-radius: .6rem; padding: 1rem; margin: 1rem 0 }
.facts { color: #777; font-size: .9rem; margin: .2rem 0 .6rem }
section.missing { opacity: .75; padding: .4rem 1rem; margin: .4rem 0; display: flex; gap: 1rem }
.missing { align-items: baseline } .missing h2 { min-width: 5rem } .missing p { margin: 0 }
.failed { border-color: #c33 }
img, video { max-width: 100%; border-radius: .4rem } audio { width: 100% }
svg { width: 100%; height: auto } code { background: #8882; padding: .1rem .3rem; border-radius: .2rem }
"""


def render_page(steps: Sequence[Step], timeline: Timeline, version: str) -> str:
    """The whole page; media are linked by name, beside it."""
    body = "\n".join(_section(step) for step in steps)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<link rel="icon" href="data:,"><title>lollms-local demo</title><style>{_STYLE}</style></head><body>
<h1>lollms-local {escape(version)}: one process, one memory</h1>
<p>Everything on this page was made on this machine, in one process, through the LoLLMS client.</p>
{body}
<section><h2>Memory</h2><p class="facts">Green: resident memory of the process. Blue: what the manager has granted to
loaded models, their work included.</p>{_plot(timeline)}</section>
</body></html>
"""


def _section(step: Step) -> str:
    if step.state == "missing":
        return f'<section class="missing"><h2>{escape(step.name)}</h2><p>{escape(step.text)}</p></section>'
    facts = " · ".join(
        escape(part)
        for part in (
            step.model,
            step.device,
            f"loaded in {step.load_s:.2f} s" if step.load_s else "",
            f"ran {step.work_s:.2f} s" if step.work_s else "",
        )
        if part
    )
    return f"""<section class="{escape(step.state)}"><h2>{escape(step.name)}</h2><p class="facts">{facts}</p>
<p>{escape(step.text)}</p>{_medium(step)}</section>"""


def _medium(step: Step) -> str:
    if not step.file:
        return ""
    source = escape(step.file)
    if step.file.endswith(".png"):
        return f'<img src="{source}" alt="{escape(step.text)}">'
    tag = "video" if step.file.endswith(".mp4") else "audio"
    return f'<{tag} controls src="{source}"></{tag}>'


def _plot(timeline: Timeline, width: int = 800, height: int = 220) -> str:
    """Two lines over time; the axes carry seconds and MiB."""
    if len(timeline.samples) < 2:
        return "<p>The demo was too short to sample.</p>"
    end = timeline.samples[-1][0]
    top = max(max(rss, models) for _, rss, models in timeline.samples) * 1.1
    left, bottom = 50, height - 24

    def point(seconds: float, size: float) -> str:
        x = left + (width - left - 10) * seconds / end
        return f"{x:.1f},{bottom - (bottom - 24) * size / top:.1f}"

    rss = " ".join(point(t, r) for t, r, _ in timeline.samples)
    models = " ".join(point(t, m) for t, _, m in timeline.samples)
    marks = "".join(
        f'<line x1="{x}" x2="{x}" y1="20" y2="{bottom}" stroke="#8886"/><text x="{x}" y="14">{escape(text)}</text>'
        for x, text in ((point(t, 0).split(",")[0], text) for t, text in timeline.marks)
    )
    return f"""<svg viewBox="0 0 {width} {height}" font-size="11" fill="currentColor" role="img"
 aria-label="memory over time">{marks}<line x1="{left}" x2="{width}" y1="{bottom}" y2="{bottom}" stroke="currentColor"/>
<text x="0" y="30">{top / MIB:.0f} MiB</text><text x="0" y="{bottom}">0</text>
<text x="{left}" y="{height - 6}">0 s</text><text x="{width - 60}" y="{height - 6}">{end:.1f} s</text>
<polyline points="{rss}" fill="none" stroke="#2a7" stroke-width="2"/>
<polyline points="{models}" fill="none" stroke="#27c" stroke-width="2"/></svg>"""
