-- The billing database on MySQL. Strings that are keys, unique or compared have a binary collation without padding,
-- so that 'GIFT-1' and 'gift-1' stay two cards. (MariaDB calls that collation utf8mb4_nopad_bin; `create` translates.)
CREATE TABLE plan (
    id BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
    code VARCHAR(20) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin NOT NULL,
    name VARCHAR(80) NOT NULL,
    monthly_price DECIMAL(12,2) NOT NULL,
    yearly_price DECIMAL(12,2) NOT NULL,
    on_sale TINYINT(1) NOT NULL,
    updated_at DATETIME(6) NOT NULL,
    UNIQUE KEY plan_code (code)
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4;

CREATE TABLE customer (
    id BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
    country_code VARCHAR(2) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin,
    name VARCHAR(120) NOT NULL,
    email VARCHAR(190) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin,
    born_on DATE,
    balance DECIMAL(12,2) NOT NULL,
    newsletter TINYINT(1) NOT NULL,
    note VARCHAR(500),
    created_at DATETIME(6) NOT NULL,
    updated_at DATETIME(6) NOT NULL,
    UNIQUE KEY customer_email (email)
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4;

CREATE TABLE subscription (
    id BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
    customer_id BIGINT NOT NULL,
    plan_id BIGINT NOT NULL,
    billing_cycle VARCHAR(10) NOT NULL,
    active TINYINT(1) NOT NULL,
    started_at DATETIME(6) NOT NULL,
    ended_at DATETIME(6),
    KEY subscription_customer (customer_id),
    KEY subscription_plan (plan_id),
    CONSTRAINT subscription_of_customer FOREIGN KEY (customer_id) REFERENCES customer (id) ON DELETE CASCADE,
    CONSTRAINT subscription_to_plan FOREIGN KEY (plan_id) REFERENCES plan (id)
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4;

CREATE TABLE invoice (
    id BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
    customer_id BIGINT NOT NULL,
    period VARCHAR(7) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin NOT NULL,
    status VARCHAR(10) NOT NULL,
    total DECIMAL(12,2) NOT NULL,
    credit_used DECIMAL(12,2) NOT NULL,
    document_digest BLOB,
    created_at DATETIME(6) NOT NULL,
    UNIQUE KEY invoice_customer_period (customer_id, period),
    CONSTRAINT invoice_of_customer FOREIGN KEY (customer_id) REFERENCES customer (id) ON DELETE CASCADE
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4;

CREATE TABLE invoice_line (
    id BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
    invoice_id BIGINT NOT NULL,
    description VARCHAR(200) NOT NULL,
    quantity BIGINT NOT NULL,
    unit_price DECIMAL(14,4) NOT NULL,
    amount DECIMAL(12,2) NOT NULL,
    KEY invoice_line_invoice (invoice_id),
    CONSTRAINT line_of_invoice FOREIGN KEY (invoice_id) REFERENCES invoice (id) ON DELETE CASCADE
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4;

CREATE TABLE payment (
    id BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
    customer_id BIGINT NOT NULL,
    invoice_id BIGINT NOT NULL,
    idempotency_key VARCHAR(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin NOT NULL,
    kind VARCHAR(10) NOT NULL,
    amount DECIMAL(12,2) NOT NULL,
    created_at DATETIME(6) NOT NULL,
    UNIQUE KEY payment_idempotency_key (idempotency_key),
    KEY payment_customer (customer_id),
    KEY payment_invoice (invoice_id),
    CONSTRAINT payment_of_customer FOREIGN KEY (customer_id) REFERENCES customer (id),
    CONSTRAINT payment_of_invoice FOREIGN KEY (invoice_id) REFERENCES invoice (id)
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4;

CREATE TABLE gift_card (
    code VARCHAR(24) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin NOT NULL PRIMARY KEY,
    customer_id BIGINT NOT NULL,
    initial_amount DECIMAL(12,2) NOT NULL,
    remaining_amount DECIMAL(12,2) NOT NULL,
    expires_on DATE,
    created_at DATETIME(6) NOT NULL,
    KEY gift_card_customer (customer_id),
    CONSTRAINT gift_card_of_customer FOREIGN KEY (customer_id) REFERENCES customer (id)
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4;

CREATE TABLE gift_card_entry (
    id BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
    gift_card_code VARCHAR(24) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin NOT NULL,
    amount DECIMAL(12,2) NOT NULL,
    created_at DATETIME(6) NOT NULL,
    KEY gift_card_entry_card (gift_card_code),
    CONSTRAINT entry_of_gift_card FOREIGN KEY (gift_card_code) REFERENCES gift_card (code)
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4;
