"""The paper's pre-training data: what is taken from each source, and in which proportion they are mixed.

| source | what is done to it | here |
| --- | --- | --- |
| CommonCrawl (CCNet) | repeated lines out, language, n-gram quality, classifier "cited by Wikipedia" | `duplicates`, `language`, `quality` |
| C4 | rules on punctuation, words and sentences; repeated spans out | `heuristics`, `duplicates` |
| GitHub | permissive licences, line length and alphanumeric share, headers out, equal files once | `heuristics`, `duplicates` |
| Wikipedia, 20 languages | markup out | `markup` |
| books | at 90 % overlap only one stays | `duplicates` |
| arXiv | from the first section on; bibliography and comments out, macros expanded | `markup` |
| StackExchange | tags out, answers by falling score | `markup` |

Each is a small pure function on a text, or a stage that remembers what it has seen; `documents` puts them in a row over any iterable, counts what
each keeps, and resumes after a kill. `mixture` draws from what remains, by weight.
"""
