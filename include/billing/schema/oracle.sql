-- The billing database on Oracle: text is counted in characters, '' is NULL. Ids that the service makes come from
-- sequences that begin far above those of the seed; they are odd, for the target of a migration generates even ones.
CREATE SEQUENCE plan_id START WITH 1000000001 INCREMENT BY 2;
CREATE SEQUENCE customer_id START WITH 1000000001 INCREMENT BY 2;
CREATE SEQUENCE subscription_id START WITH 1000000001 INCREMENT BY 2;
CREATE SEQUENCE invoice_id START WITH 1000000001 INCREMENT BY 2;
CREATE SEQUENCE invoice_line_id START WITH 1000000001 INCREMENT BY 2;
CREATE SEQUENCE payment_id START WITH 1000000001 INCREMENT BY 2;
CREATE SEQUENCE gift_card_entry_id START WITH 1000000001 INCREMENT BY 2;

CREATE TABLE plan (
    id NUMBER(19) DEFAULT plan_id.NEXTVAL NOT NULL PRIMARY KEY,
    code VARCHAR2(20 CHAR) NOT NULL UNIQUE,
    name VARCHAR2(80 CHAR) NOT NULL,
    monthly_price NUMBER(12,2) NOT NULL,
    yearly_price NUMBER(12,2) NOT NULL,
    on_sale NUMBER(1) NOT NULL,
    updated_at TIMESTAMP(6) NOT NULL
);

CREATE TABLE customer (
    id NUMBER(19) DEFAULT customer_id.NEXTVAL NOT NULL PRIMARY KEY,
    country_code VARCHAR2(2 CHAR),
    name VARCHAR2(120 CHAR) NOT NULL,
    email VARCHAR2(190 CHAR) UNIQUE,
    born_on DATE,
    balance NUMBER(12,2) NOT NULL,
    newsletter NUMBER(1) NOT NULL,
    note VARCHAR2(500 CHAR),
    created_at TIMESTAMP(6) NOT NULL,
    updated_at TIMESTAMP(6) NOT NULL
);

CREATE TABLE subscription (
    id NUMBER(19) DEFAULT subscription_id.NEXTVAL NOT NULL PRIMARY KEY,
    customer_id NUMBER(19) NOT NULL REFERENCES customer (id) ON DELETE CASCADE,
    plan_id NUMBER(19) NOT NULL REFERENCES plan (id),
    billing_cycle VARCHAR2(10 CHAR) NOT NULL,
    active NUMBER(1) NOT NULL,
    started_at TIMESTAMP(6) NOT NULL,
    ended_at TIMESTAMP(6)
);
CREATE INDEX subscription_customer ON subscription (customer_id);
CREATE INDEX subscription_plan ON subscription (plan_id);

CREATE TABLE invoice (
    id NUMBER(19) DEFAULT invoice_id.NEXTVAL NOT NULL PRIMARY KEY,
    customer_id NUMBER(19) NOT NULL REFERENCES customer (id) ON DELETE CASCADE,
    period VARCHAR2(7 CHAR) NOT NULL,
    status VARCHAR2(10 CHAR) NOT NULL,
    total NUMBER(12,2) NOT NULL,
    credit_used NUMBER(12,2) NOT NULL,
    document_digest BLOB,
    created_at TIMESTAMP(6) NOT NULL,
    UNIQUE (customer_id, period)
);

CREATE TABLE invoice_line (
    id NUMBER(19) DEFAULT invoice_line_id.NEXTVAL NOT NULL PRIMARY KEY,
    invoice_id NUMBER(19) NOT NULL REFERENCES invoice (id) ON DELETE CASCADE,
    description VARCHAR2(200 CHAR) NOT NULL,
    quantity NUMBER(19) NOT NULL,
    unit_price NUMBER(14,4) NOT NULL,
    amount NUMBER(12,2) NOT NULL
);
CREATE INDEX invoice_line_invoice ON invoice_line (invoice_id);

CREATE TABLE payment (
    id NUMBER(19) DEFAULT payment_id.NEXTVAL NOT NULL PRIMARY KEY,
    customer_id NUMBER(19) NOT NULL REFERENCES customer (id),
    invoice_id NUMBER(19) NOT NULL REFERENCES invoice (id),
    idempotency_key VARCHAR2(64 CHAR) NOT NULL UNIQUE,
    kind VARCHAR2(10 CHAR) NOT NULL,
    amount NUMBER(12,2) NOT NULL,
    created_at TIMESTAMP(6) NOT NULL
);
CREATE INDEX payment_customer ON payment (customer_id);
CREATE INDEX payment_invoice ON payment (invoice_id);

CREATE TABLE gift_card (
    code VARCHAR2(24 CHAR) NOT NULL PRIMARY KEY,
    customer_id NUMBER(19) NOT NULL REFERENCES customer (id),
    initial_amount NUMBER(12,2) NOT NULL,
    remaining_amount NUMBER(12,2) NOT NULL,
    expires_on DATE,
    created_at TIMESTAMP(6) NOT NULL
);
CREATE INDEX gift_card_customer ON gift_card (customer_id);

CREATE TABLE gift_card_entry (
    id NUMBER(19) DEFAULT gift_card_entry_id.NEXTVAL NOT NULL PRIMARY KEY,
    gift_card_code VARCHAR2(24 CHAR) NOT NULL REFERENCES gift_card (code),
    amount NUMBER(12,2) NOT NULL,
    created_at TIMESTAMP(6) NOT NULL
);
CREATE INDEX gift_card_entry_card ON gift_card_entry (gift_card_code);
