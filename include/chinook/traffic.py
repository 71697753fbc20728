"""Live changes on a Chinook database: `python -m chinook.traffic URL --rate 20 --seconds 60 --seed S`.

It runs and logs as billing.traffic does, on either kind of database. Chinook's tables generate no ids on MySQL, so
new ones are drawn at random, high above those that ship with it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from datetime import datetime
from decimal import Decimal

from billing.database import Database, Row
from billing.service import Declined, Receipt
from billing.traffic import main

FIRST_ID, LAST_ID = 1_000_000, 2**31 - 1
COUNTRIES = ("USA", "Canada", "France", "Brazil", "Germany", "Ireland", "Australia", "Norway", "Chile", "India")


class Shop:
    """What the shop's customers and staff do."""

    weights: Mapping[str, int] = {
        "buy": 50,
        "sign_up": 15,
        "move": 10,
        "return_line": 10,
        "change_price": 5,
        "add_to_playlist": 8,
        "drop_from_playlist": 5,
        "rename_playlist": 3,
    }

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._customers: list[int] = []
        self._tracks: list[int] = []
        self._playlists: list[int] = []
        self._drawn: set[int] = set()

    def prepare(self, db: Database) -> None:
        self._customers = [number for (number,) in db.rows("SELECT CustomerId FROM Customer ORDER BY CustomerId")]
        self._tracks = [number for (number,) in db.rows("SELECT TrackId FROM Track ORDER BY TrackId")]
        self._playlists = [number for (number,) in db.rows("SELECT PlaylistId FROM Playlist ORDER BY PlaylistId")]

    def perform(self, db: Database, kind: str, at: datetime) -> Receipt:
        step: Callable[[Database, datetime], Receipt] = getattr(self, f"_{kind}")
        with db.transaction():
            return step(db, at)

    def _buy(self, db: Database, at: datetime) -> Receipt:
        customer, invoice = self._rng.choice(self._customers), self._new_id(db, "Invoice")
        street, city, state, country, postcode = self._one(
            db, "SELECT Address, City, State, Country, PostalCode FROM Customer WHERE CustomerId = ?", customer
        )
        lines = []
        for track in self._rng.sample(self._tracks, self._rng.randint(1, 5)):
            (price,) = self._one(db, "SELECT UnitPrice FROM Track WHERE TrackId = ?", track)
            lines.append((self._new_id(db, "InvoiceLine"), invoice, track, f"{price:.2f}", self._rng.randint(1, 2)))
        total = sum((Decimal(price) * quantity for _, _, _, price, quantity in lines), Decimal("0.00"))
        db.execute(
            "INSERT INTO Invoice (InvoiceId, CustomerId, InvoiceDate, BillingAddress, BillingCity, BillingState,"
            " BillingCountry, BillingPostalCode, Total) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (invoice, customer, f"{at:%Y-%m-%d %H:%M:%S}", street, city, state, country, postcode, str(total)),
        )
        db.insert_many(
            "INSERT INTO InvoiceLine (InvoiceLineId, InvoiceId, TrackId, UnitPrice, Quantity) VALUES (?, ?, ?, ?, ?)",
            lines,
        )
        return {"customer_id": customer, "invoice_id": invoice, "total": str(total), "lines": len(lines)}

    def _sign_up(self, db: Database, at: datetime) -> Receipt:
        customer, country = self._new_id(db, "Customer"), self._rng.choice(COUNTRIES)
        db.execute(
            "INSERT INTO Customer (CustomerId, FirstName, LastName, City, Country, Email) VALUES (?, ?, ?, ?, ?, ?)",
            (
                customer,
                "Zoë",
                self._rng.choice(("Ødegård", "Müller", "山田")),
                None,
                country,
                f"{customer}@example.com",
            ),
        )
        self._customers.append(customer)
        return {"customer_id": customer, "country": country}

    def _move(self, db: Database, at: datetime) -> Receipt:
        customer, country = self._rng.choice(self._customers), self._rng.choice(COUNTRIES)
        db.execute("UPDATE Customer SET Country = ?, State = NULL WHERE CustomerId = ?", (country, customer))
        return {"customer_id": customer, "country": country}

    def _return_line(self, db: Database, at: datetime) -> Receipt:
        """Take the last line off an invoice and its price off the total."""
        line, invoice = self._one(
            db,
            "SELECT l.InvoiceLineId, l.InvoiceId FROM InvoiceLine l JOIN Invoice i ON i.InvoiceId = l.InvoiceId"
            " WHERE i.CustomerId = ? ORDER BY l.InvoiceLineId DESC LIMIT 1",
            self._rng.choice(self._customers),
        )
        db.execute("DELETE FROM InvoiceLine WHERE InvoiceLineId = ?", (line,))
        left = db.rows("SELECT UnitPrice, Quantity FROM InvoiceLine WHERE InvoiceId = ?", (invoice,))
        total = sum((Decimal(f"{price:.2f}") * quantity for price, quantity in left), Decimal("0.00"))
        db.execute("UPDATE Invoice SET Total = ? WHERE InvoiceId = ?", (str(total), invoice))
        return {"invoice_id": invoice, "line_id": line, "total": str(total)}

    def _change_price(self, db: Database, at: datetime) -> Receipt:
        track, price = self._rng.choice(self._tracks), f"{self._rng.randrange(49, 299) / 100:.2f}"
        db.execute("UPDATE Track SET UnitPrice = ? WHERE TrackId = ?", (price, track))
        return {"track_id": track, "price": price}

    def _add_to_playlist(self, db: Database, at: datetime) -> Receipt:
        playlist, track = self._rng.choice(self._playlists), self._rng.choice(self._tracks)
        if db.rows("SELECT 1 FROM PlaylistTrack WHERE PlaylistId = ? AND TrackId = ?", (playlist, track)):
            raise Declined(f"track {track} is in playlist {playlist}")
        db.execute("INSERT INTO PlaylistTrack (PlaylistId, TrackId) VALUES (?, ?)", (playlist, track))
        return {"playlist_id": playlist, "track_id": track}

    def _drop_from_playlist(self, db: Database, at: datetime) -> Receipt:
        playlist = self._rng.choice(self._playlists)
        (track,) = self._one(
            db, "SELECT TrackId FROM PlaylistTrack WHERE PlaylistId = ? ORDER BY TrackId DESC LIMIT 1", playlist
        )
        db.execute("DELETE FROM PlaylistTrack WHERE PlaylistId = ? AND TrackId = ?", (playlist, track))
        return {"playlist_id": playlist, "track_id": track}

    def _rename_playlist(self, db: Database, at: datetime) -> Receipt:
        playlist, name = self._rng.choice(self._playlists), f"Liste n° {self._rng.randrange(1000)}"
        db.execute("UPDATE Playlist SET Name = ? WHERE PlaylistId = ?", (name, playlist))
        return {"playlist_id": playlist, "name": name}

    def _new_id(self, db: Database, table: str) -> int:
        """One that no row has: drawn blindly, one of ten thousand would meet another in every fortieth run."""
        while True:
            number = self._rng.randrange(FIRST_ID, LAST_ID)
            if number not in self._drawn and not db.rows(f"SELECT 1 FROM {table} WHERE {table}Id = ?", (number,)):
                self._drawn.add(number)
                return number

    def _one(self, db: Database, sql: str, key: int) -> Row:
        found = db.rows(sql, (key,))
        if not found:
            raise Declined("there is nothing of the kind")
        return found[0]


if __name__ == "__main__":
    main(lambda rng, run: Shop(rng), "Live changes on a Chinook database.")
