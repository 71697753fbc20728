"""What Airflow's pages say about the DAGs and tasks of a migration, in Markdown."""

from __future__ import annotations

SUMMARIES = {
    "prepare": "1. Check both stores, install what fishladder needs in them",
    "load": "2. Copy all tables from {source} to {target}",
    "replicate": "3. Follow the changes, all the time",
    "reconcile": "4. Compare every row and the reports, every night",
    "monitor": "Look for what must not be there, and for what must, every five minutes",
    "rehearse": "Rehearse on test stores: the workload, the reports and the way back, every night",
    "flip": "5. Move a {cohort} to {target}, once somebody has approved it",
    "rollback": "Move a {cohort} back to {source}, once somebody has approved it",
    "finish": "6. End: no way back any more, and nothing of fishladder left",
    "operate": "Pause, throttle, restart tables, retry rejects, doubt keys",
}

PREPARE = """\
Makes both stores of **{migration}** ready, and changes no row of the application.

- **preflight** looks for everything that would go wrong later.
- **install** creates what the target lacks, and fishladder's own tables, fences, triggers and homes.

*When to run it:* first of all, and again whenever the migration file has changed: the other DAGs refuse a file that
this one has not taken. It may be run at any time.

*When it is red:* the log of **preflight** says what fails and what to do about it; the task's link *Evidence* shows all
that it found. Mend it and trigger the DAG again. Before **install** nothing was changed; a red **install** has a lock
that it did not get, or a right that is missing, in its log, and is safe to repeat.
"""

LOAD = """\
Copies the tables of **{migration}** from {source} to {target}, then checks every row once.

- **cut** cuts the tables into chunks.
- Each table has a group, parents before children: its **load** lanes claim chunks until none is left, then **close**
  hands the table to the applier.
- **reconcile**, **report** and **outcome** are the first check.

*When to run it:* once, after `{migration}_prepare`, with `{migration}_replicate` switched on: that copies what changes
during the load. Again for tables that `{migration}_operate` has restarted.

*When it is red:* clear the failed tasks, or trigger the DAG again: what is loaded is not loaded twice. A red **close**
has chunks left to load. A red **outcome** names what differs; see `{migration}_reconcile`.
"""

REPLICATE = """\
Follows the changes of **{migration}**: makes every key right that the source's journal, a reject or a mismatch marked
dirty. Its one task is **apply**.

*When to run it:* all the time: switch it on before the load and leave it on. Each run looks for changes every 200 ms
for the time in its form, then the next one begins. It waits while the migration is not prepared yet.

*When it is red:* lost connections were retried with growing pauses for over an hour, or the log says what a person has
to mend. After three failed runs in a row Airflow pauses the DAG: mend the cause, then switch it on again. Nothing is
lost meanwhile: the journal keeps it.
"""

RECONCILE = """\
Compares every row of **{migration}** in {source} with its copy in {target}, with traffic on.

- **reconcile** makes one pass over each table.
- **report** asks both stores the financial reports of every {cohort}; **totals** counts the rows.
- **outcome** judges: it is red when something differs.

*When to run it:* it runs every night at one o'clock (UTC). Trigger it whenever you want to know.

*When it is red:* **outcome** lists what differs, and what to do. What can be repaired is marked dirty already, and
`{migration}_replicate` repairs it. Repairing is not verifying, so run this DAG again: only a pass that found nothing is
clean. What it finds again after that has a cause that goes on: somebody writes to the target.
"""

MONITOR = """\
Asks the monitors of **{migration}**: presence of the unexpected, absence of the expected. No data is a failure.

- **monitor** asks each in the stores or the metric that it names, and keeps the answers as evidence, for which the
  gates of a flip ask. Some are measured against their own values before the last flip.

*When to run it:* switch it on well before the first flip, and leave it on; it runs every five minutes.

*When it is red:* the log of its task says which monitor found what. Nothing was changed. Find the cause; no {cohort}
flips until all are quiet again.
"""

REHEARSE = """\
Rehearses the end of **{migration}** on its test stores, filled from {target}. No store of the migration is written.

- **rehearse** copies {target} into the test stores and runs the test workload and the reports on a store of its kind
  alone. With a test store of the source's kind, too, it rehearses the whole migration: every {cohort} is flipped before
  the workload and rolled back after it, and every row and report is compared. What it found is evidence; the gate
  *rehearsals* of a flip counts its clean days.

*When to run it:* switch it on once `{migration}_load` has ended; it runs every night at three o'clock (UTC). Trigger it
again after a dirty day: the last rehearsal of a day counts.

*When it is red:* a dirty day, and the count begins anew. The log says which step found what, and ends with the last
lines of the command. When it says that a store is not a test store, nothing was deleted: mend the connection.
"""

OPERATE = """\
What an operator does to **{migration}** under way, by the task **operate**. Every action is an event of the audit trail
under your name, and is obeyed within a batch.

- *pause* and *resume*: a lane stops after its chunk, the applier after its batch; customers notice nothing, the
  journal grows.
- *throttle*: rows per second, threads that the target runs, seconds that its replicas are behind.
- *restart tables*: deletes what was loaded of them, in paced batches; run `{migration}_load` again afterwards. A
  table that refers to one of them by a foreign key must be restarted with it. Refused once a {cohort} has
  begun to flip.
- *retry rejects*: all, of some tables, or those with some words in their error.
- *rewrite entities*: marks every row of these roots dirty, and the applier writes them again.
- *mark keys dirty*: the same for single keys, from the form or from a file.

*When to run it:* when you want one of these; trigger it with the form.

*When it is red:* the log says which field does not fit, and nothing was done; trigger it again with another. A
*restart tables* that was cut short leaves its tables closed to everybody: repeat it with the same form.
"""

FLIP = """\
Moves cohorts (a {cohort} each) of **{migration}** from {source} to {target}. Reads never stop; writes that come through
the router wait for seconds in a durable queue, are replayed in order, and none is lost or done twice.

- **ask** opens an attempt for each {cohort} of the form; waves go in the file's order, shared tables last.
- **gates** judges what is behind it: clean passes, reports, monitors, rejects, lag, the audit chain. It keeps that as
  evidence, and says what is missing.
- **approve** shows the evidence to a person and waits for a yes or a no; there are as many as the file asks for, for
  different people, and whoever asked is none of them. Answer after ten seconds or later: Airflow fails an answer that
  comes sooner, and asks again, as it does when somebody answers who may not.
- **verify** compares every row with traffic on; **cutover** fences the {cohort}, drains and compares what was touched
  meanwhile, switches, and replays what was queued. **give_up** ends an attempt that was not approved or not equal.
- **observe** asks every monitor for as long as the file says; the next wave waits for that. When one is not quiet,
  **send_back** rolls the {cohort} back, if the file says so. **done** shows what it came to.

*When to run it:* when the last reconciliations were clean and nothing is rejected. `{migration}_replicate` and
`{migration}_monitor` must be on; the former also takes an attempt to its end whose task has died.

*When it is red:* the log of the red task says why. The {cohort} is where it was, and its customers are served: trigger
the DAG again when that is mended. But if **cutover** is red and the command line's *status* shows the attempt at
*open*, *close* or *replay*, it is past its switch and only goes forward: mend what the log says, clear **cutover**, and
switch `{migration}_replicate` on. When **observe** is red the {cohort} has moved, and a monitor is not quiet: see
whether **send_back** has taken it back; if not, judge for yourself and run `{migration}_rollback`, or mend the cause
and clear **observe**, which begins anew.
"""

ROLLBACK = """\
Moves cohorts (a {cohort} each) of **{migration}** back from {target} to {source}, with all that was written since: the
applier has kept the source up to date.

- The tasks are those of `{migration}_flip`, the stores swapped: **ask**, **gates**, **approve**, **verify**,
  **cutover**, **give_up**, **done**. Its gates ask only that the copies have caught up and nothing is rejected or
  different.

*When to run it:* when a flip was a mistake, minutes or months after it, until `{migration}_finish` has ended the way
back. Shared tables go back first.

*When it is red:* as there: before its switch the {cohort} is where it was, in {target}, and its customers are served;
past it, it only goes forward, to {source}.
"""

MOVES = {"flip": FLIP, "rollback": ROLLBACK}

FINISH = """\
Ends the way back for cohorts (a {cohort} each) of **{migration}** that live in {target}.

- **ask** opens an attempt for each {cohort} of the form, **gates** judges what is behind it, **approve** waits for a
  person; **give_up** ends an attempt that was not approved.
- **cutover** ends the recording of their changes; **done** shows what it came to. When the last one is complete,
  **uninstall** removes fishladder's triggers and tables from both stores; the ledger stays, for auditors.

*When to run it:* when nobody would go back any more. Take the router out of the application before the last {cohort}.

*When it is red:* the log says which {cohort} is not there yet. Approve, or mend it and trigger the DAG again.
"""

TASKS = {
    "ask": "Opens an attempt for each cohort of the form, under the name of whoever triggered the run. Red: one of "
    "them cannot go now, the message says why, and none was opened.",
    "gates": "What the attempt has behind it, judged and kept as evidence. Red: the message says which gate is closed, "
    "what is missing and which DAG to run; nothing was fenced.",
    "approve": "Waits for a person's yes or no to exactly the evidence that it shows, and records it in the ledger. "
    "Who may not approve, or answers within some six seconds, is asked again.",
    "monitor": "Asks every monitor. Red: one is not quiet, or gave no data; the message says which.",
    "verify": "A pass over every table, with traffic on. Red: rows of the cohort differ or are rejected; nothing was "
    "fenced.",
    "cutover": "From the fence to the end of the replay. Red: aborted, and the cohort is where it was; or past the "
    "switch, from where it only goes forward: mend what the log says, clear this task, and switch replicate on; or a "
    "store is ahead of the ledger, and a person has to look.",
    "give_up": "Ends an attempt whose gates are closed, that was not approved, or whose rows differ. Otherwise it is "
    "skipped.",
    "observe": "Asks every monitor until all were quiet for as long as the file says. Red: one was not, or rows of the "
    "cohort differ or are rejected; the cohort stays moved unless send_back takes it back.",
    "send_back": "Rolls a flip back that was not quiet, if the file says automatic_rollback. Otherwise it is skipped.",
    "done": "What the attempt came to, kept as evidence: who approved it, how long it took, how long writes waited.",
    "uninstall": "Removes fishladder's triggers and tables from both stores once every cohort is complete.",
    "rehearse": "Fills the test stores from the target, runs the workload and the reports there, and goes back. Red: "
    "a dirty day, the message says why; or a store that is not known as a test store, and then nothing was deleted.",
    "operate": "Does what the form says. Red: the message says which field does not fit; nothing was done.",
    "preflight": "Tables, columns, keys, settings, privileges, accounts and cohorts of both stores, each with pass, "
    "warn or fail in the log. Changes nothing. Red: mend what the message says, then clear this task.",
    "install": "Creates the target's missing tables, then fishladder's tables, the fences, the source's triggers and "
    "the homes, and records the migration file under the name of whoever triggered the run.",
    "cut": "Cuts every table into chunks of its key, once. Work is divided by the ledger, not by Airflow: the number "
    "of tasks does not depend on the number of rows.",
    "load": "A lane: claims chunks and copies each in one transaction of the target, until none is left. A row that "
    "the target refuses becomes a reject and stops nothing.",
    "close": "Installs the target's triggers on this table, and lets the applier have it. Red while chunks are left.",
    "apply": "Makes dirty keys right: reads the owner's current row and writes or deletes the copy. Skipped when the "
    "migration was not prepared in this time.",
    "reconcile": "One pass over a table: missing, extra and different rows, duplicates and orphans. Differences are "
    "recorded and marked dirty; this task is green all the same, and **outcome** judges.",
    "report": "The financial reports of every cohort in both stores, over the time until last midnight (UTC), compared "
    "line by line and kept as evidence. Red when one could not be asked; the message says why.",
    "totals": "Rows of every table and cohort in both stores, kept as evidence. While customers are busy they may "
    "differ by what is on its way.",
    "outcome": "A table of all newest passes in the log. Red unless every table is clean, nothing is rejected and all "
    "reports are equal; the message says what to do.",
}
