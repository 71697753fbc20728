-- The billing database on SQLite. Money is text with exactly the digits of its scale, timestamps are text with
-- microseconds: a NUMERIC column would turn them into binary floats.
CREATE TABLE plan (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    code VARCHAR(20) NOT NULL UNIQUE,
    name VARCHAR(80) NOT NULL,
    monthly_price DECIMAL_TEXT(12,2) NOT NULL,
    yearly_price DECIMAL_TEXT(12,2) NOT NULL,
    on_sale BOOLEAN NOT NULL,
    updated_at DATETIME(6) NOT NULL
);

CREATE TABLE customer (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    country_code VARCHAR(2),
    name VARCHAR(120) NOT NULL,
    email VARCHAR(190) UNIQUE,
    born_on DATE,
    balance DECIMAL_TEXT(12,2) NOT NULL,
    newsletter BOOLEAN NOT NULL,
    note VARCHAR(500),
    created_at DATETIME(6) NOT NULL,
    updated_at DATETIME(6) NOT NULL
);

CREATE TABLE subscription (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    customer_id BIGINT NOT NULL REFERENCES customer (id) ON DELETE CASCADE,
    plan_id BIGINT NOT NULL REFERENCES plan (id),
    billing_cycle VARCHAR(10) NOT NULL,
    active BOOLEAN NOT NULL,
    started_at DATETIME(6) NOT NULL,
    ended_at DATETIME(6)
);
CREATE INDEX subscription_customer ON subscription (customer_id);
CREATE INDEX subscription_plan ON subscription (plan_id);

CREATE TABLE invoice (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    customer_id BIGINT NOT NULL REFERENCES customer (id) ON DELETE CASCADE,
    period VARCHAR(7) NOT NULL,
    status VARCHAR(10) NOT NULL,
    total DECIMAL_TEXT(12,2) NOT NULL,
    credit_used DECIMAL_TEXT(12,2) NOT NULL,
    document_digest BLOB,
    created_at DATETIME(6) NOT NULL,
    UNIQUE (customer_id, period)
);

CREATE TABLE invoice_line (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    invoice_id BIGINT NOT NULL REFERENCES invoice (id) ON DELETE CASCADE,
    description VARCHAR(200) NOT NULL,
    quantity INTEGER NOT NULL,
    unit_price DECIMAL_TEXT(14,4) NOT NULL,
    amount DECIMAL_TEXT(12,2) NOT NULL
);
CREATE INDEX invoice_line_invoice ON invoice_line (invoice_id);

CREATE TABLE payment (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    customer_id BIGINT NOT NULL REFERENCES customer (id),
    invoice_id BIGINT NOT NULL REFERENCES invoice (id),
    idempotency_key VARCHAR(64) NOT NULL UNIQUE,
    kind VARCHAR(10) NOT NULL,
    amount DECIMAL_TEXT(12,2) NOT NULL,
    created_at DATETIME(6) NOT NULL
);
CREATE INDEX payment_customer ON payment (customer_id);
CREATE INDEX payment_invoice ON payment (invoice_id);

CREATE TABLE gift_card (
    code VARCHAR(24) NOT NULL PRIMARY KEY,
    customer_id BIGINT NOT NULL REFERENCES customer (id),
    initial_amount DECIMAL_TEXT(12,2) NOT NULL,
    remaining_amount DECIMAL_TEXT(12,2) NOT NULL,
    expires_on DATE,
    created_at DATETIME(6) NOT NULL
);
CREATE INDEX gift_card_customer ON gift_card (customer_id);

CREATE TABLE gift_card_entry (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    gift_card_code VARCHAR(24) NOT NULL REFERENCES gift_card (code),
    amount DECIMAL_TEXT(12,2) NOT NULL,
    created_at DATETIME(6) NOT NULL
);
CREATE INDEX gift_card_entry_card ON gift_card_entry (gift_card_code);
