"""Parts of the llama.cpp engine (`engines.llama_cpp`): each file one concern, the library only in `native` and below.

native      the library: log, errors, loading models and adapters, the abort flag
vocabulary  text <-> tokens
context     one KV cache: decode, truncate, save, restore
plan        what it will take and where its layers go (pure arithmetic over the header)
sampling    options -> sampler chain, constrained by a grammar
schema      JSON Schema -> GBNF, always finite
template    messages -> prompt, in a Jinja sandbox
stream      bytes -> characters, stop texts, thoughts apart from the answer
tools       function calls: asking for them and reading them
prefix      which cached state a prompt continues
generation  the loop
embedding   pooled vectors
vision      images, through a projector; vision_probe tries one in a process of its own
live        what the live cache holds, as text
about       what is known about a model
"""
